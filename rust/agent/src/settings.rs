//! What `configure` said about this sandbox, as far as later calls need it. Secrets live here only:
//! nothing returns them.
use crate::users::User;

pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const LOG_BYTES_MAX: u64 = 10 << 20;
const LOG_FILES: usize = 3;

pub struct Settings {
    /// None until the first `configure`.
    pub generation: Option<String>,
    pub hostname: String,
    pub env: Vec<(String, Vec<u8>)>,
    pub secrets: Vec<(String, Vec<u8>)>,
    pub user: Option<String>,
    pub workdir: Option<Vec<u8>>,
    pub default_path: String,
    pub log_bytes_max: u64,
    pub log_files: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            generation: None,
            hostname: String::new(),
            env: Vec::new(),
            secrets: Vec::new(),
            user: None,
            workdir: None,
            default_path: DEFAULT_PATH.to_owned(),
            log_bytes_max: LOG_BYTES_MAX,
            log_files: LOG_FILES,
        }
    }
}

/// Variables in the order in which they were first set; a later value replaces an earlier one.
#[derive(Default)]
pub struct Environment(Vec<(String, Vec<u8>)>);

impl Environment {
    pub fn set(&mut self, name: &str, value: &[u8]) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value.to_vec(),
            None => self.0.push((name.to_owned(), value.to_vec())),
        }
    }

    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
    }

    /// `NAME=value` each.
    pub fn lines(&self) -> impl Iterator<Item = Vec<u8>> {
        self.0.iter().map(|(name, value)| [name.as_bytes(), b"=", value].concat())
    }
}

impl Settings {
    /// Defaults, image and sandbox, secrets, call: the later wins.
    pub fn environment(&self, user: &User, terminal: Option<&str>, call: &[(&str, &[u8])]) -> Environment {
        let mut env = Environment::default();
        env.set("PATH", self.default_path.as_bytes());
        env.set("HOME", user.home.as_bytes());
        env.set("USER", user.name.as_bytes());
        env.set("LOGNAME", user.name.as_bytes());
        env.set("SHELL", user.shell.as_bytes());
        env.set("LANG", b"C.UTF-8");
        if let Some(term) = terminal {
            env.set("TERM", term.as_bytes());
        }
        let kept = self.env.iter().chain(&self.secrets).map(|(name, value)| (name.as_str(), value.as_slice()));
        for (name, value) in kept.chain(call.iter().copied()) {
            env.set(name, value);
        }
        env
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users::resolve_in;

    #[test]
    fn what_is_nearer_to_the_call_wins() {
        let user = resolve_in("", "", "root").expect("root");
        let own = |pairs: &[(&str, &str)]| -> Vec<(String, Vec<u8>)> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect()
        };
        let settings = Settings {
            env: own(&[("A", "sandbox"), ("B", "sandbox"), ("C", "sandbox"), ("HOME", "/here")]),
            secrets: own(&[("B", "secret"), ("C", "secret")]),
            ..Settings::default()
        };
        let env = settings.environment(&user, Some("xterm"), &[("C", b"call")]);
        let get = |name| env.get(name).map(String::from_utf8_lossy).unwrap_or_default().into_owned();
        assert_eq!([get("A"), get("B"), get("C"), get("HOME")], ["sandbox", "secret", "call", "/here"]);
        assert_eq!([get("USER"), get("TERM"), get("LANG")], ["root", "xterm", "C.UTF-8"]);
        assert_eq!(env.lines().filter(|line| line.starts_with(b"C=")).count(), 1);
    }
}
