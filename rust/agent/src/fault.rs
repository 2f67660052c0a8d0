//! What a request is refused with: a code of `src/domain/errors.ts`, a sentence, perhaps an errno.
use crate::wire::value::{Value, ValueError};
use rustix::io::Errno;

#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub code: &'static str,
    pub message: String,
    pub errno: Option<Errno>,
}

pub type Outcome = Result<Value, Fault>;

macro_rules! codes {
    ($($name:ident),*) => {$(
        pub fn $name(message: impl Into<String>) -> Fault {
            Fault { code: stringify!($name), message: message.into(), errno: None }
        }
    )*};
}

impl Fault {
    codes!(
        invalid_argument,
        not_found,
        conflict,
        failed_precondition,
        permission_denied,
        resource_exhausted,
        unavailable,
        cancelled,
        unimplemented,
        internal
    );

    /// A failed system call on `what`: the code follows from the errno.
    pub fn system(what: &str, errno: Errno) -> Fault {
        let code = match errno {
            Errno::NOENT | Errno::SRCH | Errno::NXIO | Errno::NODEV => "not_found",
            Errno::ACCESS | Errno::PERM | Errno::ROFS => "permission_denied",
            Errno::EXIST | Errno::NOTEMPTY | Errno::ADDRINUSE => "conflict",
            Errno::NOTDIR | Errno::ISDIR | Errno::INVAL | Errno::LOOP | Errno::NAMETOOLONG | Errno::XDEV => "invalid_argument",
            Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::FBIG => {
                "resource_exhausted"
            }
            Errno::BUSY | Errno::TXTBSY => "failed_precondition",
            Errno::CONNREFUSED | Errno::TIMEDOUT | Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::CONNRESET | Errno::PIPE => {
                "unavailable"
            }
            _ => "internal",
        };
        Fault { code, message: format!("{what}: {}", describe(errno)), errno: Some(errno) }
    }

    pub fn to_value(&self) -> Value {
        Value::map([("code", self.code.into()), ("message", self.message.as_str().into())])
            .with("errno", self.errno.map(|errno| Value::from(errno_name(errno))))
    }
}

impl From<ValueError> for Fault {
    fn from(error: ValueError) -> Fault {
        Fault::invalid_argument(format!("the request cannot be read: {error}"))
    }
}

/// The system's own sentence, without std's "(os error 2)".
pub fn describe(errno: Errno) -> String {
    let text = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    match text.split_once(" (os error") {
        Some((sentence, _)) => sentence.to_owned(),
        None => text,
    }
}

/// `ENOENT` and its like; numbers that have no name here print as `E123`.
pub fn errno_name(errno: Errno) -> String {
    let name = match errno {
        Errno::PERM => "EPERM",
        Errno::NOENT => "ENOENT",
        Errno::SRCH => "ESRCH",
        Errno::INTR => "EINTR",
        Errno::IO => "EIO",
        Errno::NXIO => "ENXIO",
        Errno::TOOBIG => "E2BIG",
        Errno::NOEXEC => "ENOEXEC",
        Errno::BADF => "EBADF",
        Errno::CHILD => "ECHILD",
        Errno::AGAIN => "EAGAIN",
        Errno::NOMEM => "ENOMEM",
        Errno::ACCESS => "EACCES",
        Errno::BUSY => "EBUSY",
        Errno::EXIST => "EEXIST",
        Errno::XDEV => "EXDEV",
        Errno::NODEV => "ENODEV",
        Errno::NOTDIR => "ENOTDIR",
        Errno::ISDIR => "EISDIR",
        Errno::INVAL => "EINVAL",
        Errno::NFILE => "ENFILE",
        Errno::MFILE => "EMFILE",
        Errno::NOTTY => "ENOTTY",
        Errno::TXTBSY => "ETXTBSY",
        Errno::FBIG => "EFBIG",
        Errno::NOSPC => "ENOSPC",
        Errno::SPIPE => "ESPIPE",
        Errno::ROFS => "EROFS",
        Errno::MLINK => "EMLINK",
        Errno::PIPE => "EPIPE",
        Errno::NAMETOOLONG => "ENAMETOOLONG",
        Errno::NOSYS => "ENOSYS",
        Errno::NOTEMPTY => "ENOTEMPTY",
        Errno::LOOP => "ELOOP",
        Errno::DQUOT => "EDQUOT",
        Errno::LIBBAD => "ELIBBAD",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::ADDRINUSE => "EADDRINUSE",
        Errno::ADDRNOTAVAIL => "EADDRNOTAVAIL",
        Errno::CONNREFUSED => "ECONNREFUSED",
        Errno::CONNRESET => "ECONNRESET",
        Errno::TIMEDOUT => "ETIMEDOUT",
        Errno::NETUNREACH => "ENETUNREACH",
        Errno::HOSTUNREACH => "EHOSTUNREACH",
        Errno::STALE => "ESTALE",
        Errno::OVERFLOW => "EOVERFLOW",
        other => return format!("E{}", other.raw_os_error()),
    };
    name.to_owned()
}
