//! Signal names as the protocol writes them: without `SIG`.
use crate::fault::Fault;
use crate::wire::fields::{Fields, number_of};
use crate::wire::value::Value;
use rustix::process::Signal;

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT",
    "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

pub fn signal_name(number: i32) -> String {
    let name = usize::try_from(number - 1).ok().and_then(|index| NAMES.get(index));
    match name {
        Some(name) => (*name).to_owned(),
        None => format!("{number}"),
    }
}

pub fn signal_number(name: &str) -> Option<i32> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let index = NAMES.iter().position(|known| *known == name)?;
    i32::try_from(index + 1).ok()
}

/// A signal by name (with or without `SIG`) or number.
pub fn signal_of(p: Fields<'_>, field: &str, default: Option<Signal>) -> Result<Signal, Fault> {
    let wrong = || Fault::invalid_argument(format!("{field} must be the name or number of a signal"));
    let number = match p.get(field) {
        None => return default.ok_or_else(wrong),
        Some(Value::Str(name)) => signal_number(name),
        Some(value) => number_of(value).and_then(|number| i32::try_from(number).ok()),
    };
    number.and_then(Signal::from_named_raw).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_the_kernel() {
        for (name, number) in [("HUP", 1), ("KILL", 9), ("TERM", 15), ("CHLD", 17), ("WINCH", 28), ("SYS", 31)] {
            assert_eq!(signal_name(number), name);
            assert_eq!(signal_number(name), Some(number));
            assert_eq!(signal_number(&format!("SIG{name}")), Some(number));
        }
        assert_eq!(signal_name(34), "34");
        assert_eq!(signal_number("NOPE"), None);
    }
}
