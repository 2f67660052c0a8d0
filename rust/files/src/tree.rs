//! One directory that is served: every path is looked up from it anew, beneath it, through no symlink.
use crate::ahead::Ahead;
use crate::files::Files;
use crate::nodes::{Identity, Nodes, ROOT};
use crate::watch::Watches;
use crate::wire::{Answer, Header, Out, Seen, attributes_answer, entry};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, fstat, fstatfs, open, openat, openat2, readlinkat, statat,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the guest may go on without asking again of what it hears when it changes.
pub const VALID_MS: u32 = 5_000;
/// The same of what others may change without a word (`watch.rs`).
pub const VALID_UNHEARD_MS: u32 = 50;
const NOBODY: u32 = 65_534;
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

pub struct Tree {
    root: OwnedFd,
    /// /proc/self/fd.
    descriptors: OwnedFd,
    pub read_only: bool,
    /// Who has no rights over files here but his own; null: everybody is who he is.
    own: Option<(u32, u32)>,
    /// Who he is inside: root, or who the sandbox's programs run as.
    inside: (u32, u32),
    pub nodes: Nodes,
    pub files: Files,
    pub watches: Watches,
    pub ahead: Ahead,
    /// The guest hears what others change.
    pub is_told: bool,
    /// Of the directory, unless other machines have it too, of whose changes no word comes.
    pub own_device: Option<u64>,
    /// Until when the guest may believe something of which no word comes.
    unheard_until: Instant,
    /// Small numbers for devices: files of different ones must not have the same inode inside.
    devices: HashMap<u64, u64>,
}

impl Tree {
    /// The directory must be what the path says, with no symlink on the way: it may have been changed since it was looked at.
    pub fn open(path: &Path, read_only: bool) -> Result<Tree, String> {
        let said = |what: &str| format!("{}: {what}", path.display());
        let root = open(path, PLACE | OFlags::DIRECTORY, Mode::empty()).map_err(|errno| said(&errno.to_string()))?;
        let descriptors = open("/proc/self/fd", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| said(&errno.to_string()))?;
        let real = readlinkat(CWD, format!("/proc/self/fd/{}", root.as_raw_fd()), Vec::new())
            .map_err(|errno| said(&errno.to_string()))?;
        if real.as_bytes() != path.as_os_str().as_bytes() {
            return Err(said("it was replaced"));
        }
        let stat = fstat(&root).map_err(|errno| said(&errno.to_string()))?;
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let own = if uid.is_root() { None } else { Some((uid.as_raw(), gid.as_raw())) };
        let nodes = Nodes::new(identity(&stat));
        let (files, watches, ahead, devices) = (Files::default(), Watches::new(), Ahead::default(), HashMap::new());
        let (is_told, unheard_until) = (false, Instant::now());
        let own_device = (!is_shared(&root)).then_some(stat.st_dev);
        Ok(Tree {
            root,
            descriptors,
            read_only,
            own,
            inside: (0, 0),
            nodes,
            files,
            watches,
            ahead,
            is_told,
            own_device,
            unheard_until,
            devices,
        })
    }

    pub fn top(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub fn for_change(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// A directory, and that one.
    pub fn directory(&self, id: u64) -> Result<OwnedFd, Errno> {
        let fd = openat2(&self.root, self.nodes.path(id)?, PLACE | OFlags::DIRECTORY, Mode::empty(), BENEATH)?;
        self.same(id, fd)
    }

    fn same(&self, id: u64, fd: OwnedFd) -> Result<OwnedFd, Errno> {
        if identity(&fstat(&fd)?) == self.nodes.get(id)?.identity { Ok(fd) } else { Err(Errno::STALE) }
    }

    /// Whatever it is, as no more than a place.
    pub fn place(&self, id: u64) -> Result<OwnedFd, Errno> {
        if id == ROOT {
            return rustix::io::fcntl_dupfd_cloexec(&self.root, 3);
        }
        if let Some(kept) = &self.nodes.get(id)?.kept {
            return rustix::io::fcntl_dupfd_cloexec(kept, 3);
        }
        let mut last = Errno::NOENT;
        for (parent, name) in self.nodes.names(id)? {
            let tried = self.directory(*parent).and_then(|directory| openat2(&directory, name, PLACE, Mode::empty(), BENEATH));
            match tried.and_then(|fd| self.same(id, fd)) {
                Ok(fd) => return Ok(fd),
                Err(errno) => last = errno,
            }
        }
        Err(if last == Errno::NOENT { Errno::STALE } else { last })
    }

    /// For what wants a path, and takes no descriptor of a mere place.
    pub fn path_of(&self, place: BorrowedFd<'_>) -> String {
        format!("/proc/self/fd/{}", place.as_raw_fd())
    }

    /// A regular file or a directory, opened in earnest.
    pub fn reopen(&self, place: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        // Its last part is the kernel's own link; what it leads to has been looked at.
        openat(&self.descriptors, place.as_raw_fd().to_string(), flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
    }

    pub fn seen(&mut self, stat: Stat) -> Seen {
        let count = self.devices.len() as u64;
        let device = *self.devices.entry(stat.st_dev).or_insert(count);
        let owned = |id: u32, own: u32, inside: u32| if id == own { inside } else { NOBODY };
        let (uid, gid) = match self.own {
            None => (stat.st_uid, stat.st_gid),
            Some((uid, gid)) => (owned(stat.st_uid, uid, self.inside.0), owned(stat.st_gid, gid, self.inside.1)),
        };
        Seen { ino: stat.st_ino ^ device.wrapping_shl(56), stat, uid, gid }
    }

    /// Whom on this machine the guest means; `PERM` where nobody could be given anything.
    pub fn owner(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(Option<Uid>, Option<Gid>), Errno> {
        if self.own.is_none() {
            return Ok((uid.map(Uid::from_raw), gid.map(Gid::from_raw)));
        }
        let is_own = uid.is_none_or(|uid| uid == self.inside.0) && gid.is_none_or(|gid| gid == self.inside.1);
        if is_own { Ok((None, None)) } else { Err(Errno::PERM) }
    }

    /// Who has no rights over files here but his own is that one inside.
    pub fn be_inside(&mut self, uid: u32, gid: u32) {
        self.inside = (uid, gid);
    }

    /// Something that has just been made is whose it is to be; where nobody can be given anything it is our own.
    pub fn give(&self, directory: &OwnedFd, name: &[u8], header: &Header) -> Result<(), Errno> {
        if self.own.is_some() {
            return Ok(());
        }
        let made = self.look(directory, name)?;
        if made.st_uid == header.uid && made.st_gid == header.gid {
            return Ok(());
        }
        let inherits = fstat(directory)?.st_mode & 0o2000 != 0;
        let group = (!inherits).then(|| Gid::from_raw(header.gid));
        rustix::fs::chownat(directory, name, Some(Uid::from_raw(header.uid)), group, AtFlags::SYMLINK_NOFOLLOW)
    }

    pub fn look(&self, directory: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
        statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The guest refers to it from now on. Of the directory it is in it has been asked before whether word comes.
    pub fn enter(&mut self, out: &mut Out, directory: &OwnedFd, parent: u64, name: &[u8], mut stat: Stat) -> Result<u64, Errno> {
        let id = self.nodes.found(identity(&stat), parent, name)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && !self.watches.has(id)
            && let Ok(itself) = openat(directory, name, PLACE | OFlags::DIRECTORY, Mode::empty())
            && fstat(&itself).is_ok_and(|found| identity(&found) == identity(&stat))
            && self.hears_of(id, &itself)
        {
            stat = fstat(&itself)?;
        }
        let valid_ms = self.valid_ms(self.watches.has(parent));
        let attributes_ms = self.attributes_ms(id, &stat);
        let seen = self.seen(stat);
        entry(out, id, valid_ms, attributes_ms, Some(&seen));
        Ok(id)
    }

    pub fn valid_ms(&mut self, is_heard: bool) -> u32 {
        if is_heard {
            return VALID_MS;
        }
        let until = Instant::now() + Duration::from_millis(VALID_UNHEARD_MS.into());
        self.unheard_until = self.unheard_until.max(until);
        VALID_UNHEARD_MS
    }

    /// A file with names elsewhere is changed there without a word.
    fn attributes_ms(&mut self, id: u64, stat: &Stat) -> u32 {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let by_name = |(parent, _): &(u64, Vec<u8>)| self.watches.has(*parent);
        let is_heard = if is_directory {
            self.watches.has(id)
        } else {
            stat.st_nlink == 1 && self.nodes.names(id).is_ok_and(|names| names.first().is_some_and(by_name))
        };
        self.valid_ms(is_heard)
    }

    /// What the guest believes may be wrong for as long as it believes it.
    pub fn told_for_moments(&mut self) {
        self.unheard_until = Instant::now() + Duration::from_millis(VALID_MS.into());
    }

    /// How long that may be so still, in ms.
    pub fn unheard_ms(&self) -> u32 {
        let left = self.unheard_until.saturating_duration_since(Instant::now());
        if left.is_zero() { 0 } else { u32::try_from(left.as_millis()).unwrap_or(VALID_MS) + 1 }
    }

    pub fn entered(&mut self, directory: &OwnedFd, parent: u64, name: &[u8]) -> Answer {
        self.hears_of(parent, directory);
        let stat = self.look(directory, name)?;
        let mut out = Out::default();
        self.enter(&mut out, directory, parent, name, stat)?;
        Ok(out.done())
    }

    pub fn attributes(&mut self, id: u64, stat: Stat) -> Answer {
        let valid_ms = self.attributes_ms(id, &stat);
        let seen = self.seen(stat);
        Ok(attributes_answer(valid_ms, &seen))
    }
}

/// File systems of a network, and those of a program: NFS, SMB, 9p, Ceph, AFS, GFS2, OCFS2, FUSE.
const SHARED: [u64; 10] =
    [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x517b, 0x0102_1997, 0x00c3_6400, 0x5346_414f, 0x0116_1970, 0x7461_636f, 0x6573_5546];

fn is_shared(directory: &OwnedFd) -> bool {
    // Where that is not known, it may be.
    fstatfs(directory).map_or(true, |found| SHARED.contains(&(found.f_type as u64 & 0xffff_ffff)))
}

pub fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}
