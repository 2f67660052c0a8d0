//! What of a machine that goes on from memory its host has to see to: told in the answer to `configure`, as each further question costs a
//! guest that has just been restored some twenty milliseconds of emulation.
use crate::boot_id::PLACE;
use crate::wire::value::Value;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;

const KEYS: &str = "/etc/ssh";
const KEY: &[u8] = b"ssh_host_";
const HOOKS: &str = "/etc/hutch/after-restore.d";

/// After the identity was applied.
pub fn look() -> Value {
    // Only a sandbox that has made its own /proc can have more there than a line.
    let boot_id = std::fs::read_to_string(PLACE).ok().map(|text| text.trim().to_owned());
    Value::map([
        ("bootId", boot_id.map_or(Value::Nil, |id| id.as_str().into())),
        ("hostKeys", has_any(KEYS, |name| name.as_bytes().starts_with(KEY)).into()),
        ("hooks", has_any(HOOKS, |name| !name.as_bytes().starts_with(b".")).into()),
    ])
}

/// Where that cannot be told there may be some.
fn has_any(directory: &str, wanted: impl Fn(&OsStr) -> bool) -> bool {
    match std::fs::read_dir(directory) {
        Ok(mut entries) => entries.any(|entry| entry.is_ok_and(|entry| wanted(&entry.file_name()))),
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_has_nothing_in_it_and_what_cannot_be_read_may() {
        let place = std::env::temp_dir().join(format!("hutch-found-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        let text = |name: &str| place.join(name).to_str().unwrap().to_owned();
        std::fs::write(text("file"), "").unwrap();
        std::os::unix::fs::symlink("loop", text("loop")).unwrap();
        let is_key = |name: &OsStr| name.as_bytes().starts_with(KEY);
        assert!(!has_any(&text(""), is_key));
        assert!(!has_any(&text("missing"), is_key));
        assert!(!has_any(&text("file"), is_key));
        assert!(has_any(&text("loop"), is_key));
        std::fs::write(text("ssh_host_ed25519_key"), "").unwrap();
        assert!(has_any(&text(""), is_key));
        std::fs::remove_dir_all(&place).unwrap();
    }
}
