//! `file.*` and `tar.*`. Everything that may block runs on a thread, and there as the user who was
//! named: the kernel itself refuses what that user may not do.
mod direct;
pub mod entry;
pub mod list;
pub mod remove;
pub mod simple;
pub mod stream;
pub mod watch;

use crate::agent::Agent;
use crate::fault::Fault;
use crate::jobs::Ticket;
use crate::users::{User, Users};
use crate::wire::fields::Fields;
use hutch_sys::{Credentials, set_file_user};
use rustix::io::Errno;

/// What a job on files needs to know.
pub struct Scene {
    pub user: User,
    pub users: Users,
    /// Whom to be; None: whom we are.
    credentials: Option<Credentials>,
    own: Credentials,
}

/// The thread is the user as long as this lives.
pub struct Acting<'a>(&'a Scene);

impl Scene {
    /// Files are reached as the scene's user until the guard is dropped.
    pub fn act(&self) -> Result<Acting<'_>, Fault> {
        if let Some(credentials) = &self.credentials {
            let done = set_file_user(credentials);
            done.map_err(|error| Fault::system("user", Errno::from_io_error(&error).unwrap_or(Errno::PERM)))?;
        }
        Ok(Acting(self))
    }
}

impl Drop for Acting<'_> {
    fn drop(&mut self) {
        if self.0.credentials.is_some() && set_file_user(&self.0.own).is_err() {
            // The thread must never work for somebody else again. Nothing but a bug can make this fail.
            loop {
                std::thread::park();
            }
        }
    }
}

impl Agent {
    /// The user of a file method, and the path of its field `name`, absolute.
    pub fn scene(&mut self, p: Fields<'_>) -> Result<Scene, Fault> {
        let user = self.users.resolve(p.opt_str("user")?.or(self.settings.user.as_deref()))?;
        let credentials = self.credentials(&user)?;
        Ok(Scene { user, users: Users::default(), credentials, own: self.own_credentials.clone() })
    }

    /// Relative paths begin where processes start.
    pub fn path_of(&mut self, p: Fields<'_>, name: &str, scene: &Scene) -> Result<Vec<u8>, Fault> {
        self.absolute(p.path(name)?, &scene.user)
    }

    pub fn file_method(&mut self, ticket: Ticket, method: &str, p: Fields<'_>) -> Result<(), Fault> {
        let mut scene = self.scene(p)?;
        match method {
            "file.list" => self.file_list(ticket, p, scene),
            "file.read" => self.file_read(ticket, p, scene),
            "file.write" => self.file_write(ticket, p, scene),
            "file.watch" => self.file_watch(ticket, p, scene),
            "tar.pack" => self.tar_pack(ticket, p, scene),
            "tar.unpack" => self.tar_unpack(ticket, p, scene),
            _ => {
                let request = self.simple_request(method, p, &scene)?;
                self.reply_from_thread(ticket, move || simple::run(&mut scene, &request))
            }
        }
    }
}

/// The name after the last slash; `/` for the root.
pub fn name_of(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let trimmed = path.get(..end).unwrap_or_default();
    match trimmed.rsplit(|byte| *byte == b'/').next() {
        Some(name) if !name.is_empty() => name,
        _ => b"/",
    }
}

/// What lies before the last name.
pub fn parent_of(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let trimmed = path.get(..end).unwrap_or_default();
    match trimmed.iter().rposition(|byte| *byte == b'/') {
        None if path.starts_with(b"/") => b"/",
        None => b".",
        Some(0) => b"/",
        Some(at) => trimmed.get(..at).unwrap_or_default(),
    }
}

/// A failed call on a path, said with the path.
pub fn failed(path: &[u8]) -> impl Fn(Errno) -> Fault {
    move |errno| Fault::system(&String::from_utf8_lossy(path), errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cut_at_their_last_name() {
        for (path, parent, name) in [
            ("/a/b", "/a", "b"),
            ("/a", "/", "a"),
            ("/a/b/", "/a", "b"),
            ("/", "/", "/"),
            ("a", ".", "a"),
            ("//x//y//", "//x/", "y"),
        ] {
            assert_eq!(parent_of(path.as_bytes()), parent.as_bytes(), "{path}");
            assert_eq!(name_of(path.as_bytes()), name.as_bytes(), "{path}");
        }
    }
}
