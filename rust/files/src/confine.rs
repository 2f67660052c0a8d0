//! What this process cannot do, before it hears the first word of a guest.
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};

/// Of files and directories that are open for the guest, and some.
const DESCRIPTORS_MAX: u64 = 16_384;
/// Of memory, whatever the guest makes it remember.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

pub fn bound_itself() -> Result<(), String> {
    let lower = |resource: Resource, most: u64| {
        let most = getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
    };
    lower(Resource::Nofile, DESCRIPTORS_MAX)
        .and_then(|()| lower(Resource::Data, MEMORY_BYTES_MAX))
        .map_err(|errno| errno.to_string())
}

/// Of root no more is left than what files of all users take: to give them away, and to look past their modes. Writing to a
/// program of more rights takes those from it, as without `FSETID` the kernel sees to.
pub fn give_up_rights() -> Result<(), String> {
    set_no_new_privs(true).map_err(|errno| errno.to_string())?;
    let kept = if rustix::process::geteuid().is_root() {
        CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::FOWNER
    } else {
        CapabilitySet::empty()
    };
    let held = rustix::thread::capabilities(None).map_err(|errno| errno.to_string())?;
    let kept = kept & held.permitted;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    match set_capabilities(None, sets) {
        Ok(()) | Err(Errno::NOSYS) => Ok(()),
        Err(errno) => Err(format!("cannot give up rights: {errno}")),
    }
}
