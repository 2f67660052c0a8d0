//! Files of `/etc` that the agent writes at every start. Where the image has one, overlayfs would copy it
//! to the private layer first and wait for the disk, each time a sandbox is new. So they are put there
//! before the overlay is mounted, empty, with the image's owner and mode.
use std::fs::{self, DirBuilder, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

const ALWAYS: [&str; 3] = ["hostname", "hosts", "machine-id"];
/// Only where there is a network; else it stays the image's.
const WITH_NETWORK: &str = "resolv.conf";

/// Does nothing to a layer that has an `/etc`: what is there is the sandbox's own.
pub fn place(lower: &Path, upper: &Path, network: bool) -> io::Result<()> {
    let (from, to) = (lower.join("etc"), upper.join("etc"));
    // Beside the layer, and moved there once it is whole: nobody looks again at what is there.
    let new = upper.with_file_name("etc-new");
    let directory = match fs::symlink_metadata(&from) {
        Ok(found) if found.is_dir() => found,
        _ => return Ok(()),
    };
    if fs::symlink_metadata(&to).is_ok() {
        return Ok(());
    }
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => DirBuilder::new().mode(0o700).create(&new)?,
    }
    for name in ALWAYS.into_iter().chain(network.then_some(WITH_NETWORK)) {
        // A link, or a file with several names, is copied as what it is.
        if let Ok(file) = fs::symlink_metadata(from.join(name))
            && file.is_file()
            && file.nlink() == 1
        {
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(new.join(name))?;
            take_over(&new.join(name), &file)?;
        }
    }
    take_over(&new, &directory)?;
    fs::rename(&new, &to)
}

fn take_over(path: &Path, from: &Metadata) -> io::Result<()> {
    // Owner first: a change of it takes bits of the mode away.
    chown(path, Some(from.uid()), Some(from.gid()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(from.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::place;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("hutch-cell-{name}-{}", std::process::id()));
            fs::create_dir_all(root.join("lower/etc")).unwrap();
            fs::create_dir_all(root.join("upper")).unwrap();
            Root(root)
        }

        fn place(&self, network: bool) -> Vec<String> {
            place(&self.0.join("lower"), &self.0.join("upper"), network).unwrap();
            let mut names: Vec<_> = fs::read_dir(self.0.join("upper/etc"))
                .map(|found| found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
                .unwrap_or_default();
            names.sort();
            names
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn plain_files_of_the_image_are_there_empty_with_their_mode() {
        let root = Root::new("plain");
        let etc = root.0.join("lower/etc");
        for name in ["hosts", "hostname", "resolv.conf", "passwd"] {
            fs::write(etc.join(name), "text").unwrap();
        }
        fs::set_permissions(etc.join("hosts"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(&etc, fs::Permissions::from_mode(0o751)).unwrap();
        symlink("elsewhere", etc.join("machine-id")).unwrap();
        assert_eq!(root.place(true), ["hostname", "hosts", "resolv.conf"]);
        let hosts = fs::metadata(root.0.join("upper/etc/hosts")).unwrap();
        assert_eq!((hosts.len(), hosts.permissions().mode() & 0o7777), (0, 0o640));
        assert_eq!(fs::metadata(root.0.join("upper/etc")).unwrap().permissions().mode() & 0o7777, 0o751);
    }

    #[test]
    fn without_a_network_the_resolvers_stay_those_of_the_image() {
        let root = Root::new("resolv");
        fs::write(root.0.join("lower/etc/resolv.conf"), "nameserver 192.0.2.1").unwrap();
        assert!(root.place(false).is_empty());
    }

    #[test]
    fn what_a_crash_left_is_begun_anew() {
        let root = Root::new("crash");
        fs::write(root.0.join("lower/etc/hosts"), "text").unwrap();
        fs::create_dir_all(root.0.join("etc-new/half")).unwrap();
        assert_eq!(root.place(true), ["hosts"]);
        assert!(!root.0.join("etc-new").exists());
    }

    #[test]
    fn a_layer_that_has_its_own_is_left_alone() {
        let root = Root::new("own");
        fs::write(root.0.join("lower/etc/hosts"), "text").unwrap();
        fs::create_dir(root.0.join("upper/etc")).unwrap();
        assert!(root.place(true).is_empty());
    }
}
