//! `hutch-files`: serves directories of this machine to one virtual machine, whose kernel speaks FUSE.
//!
//! ```text
//! hutch-files --listen SOCKET [--peer UID] {--dir DIR | --dir-ro DIR}...
//! ```
//!
//! The machine's process, which user UID runs, connects there once; when it hangs up, this ends. A message is that of FUSE behind
//! four bytes that say of which directory (from 0). The guest is hostile: whatever it sends, nothing outside of the directories is
//! looked at, no device is made, no set-user-id bit set, and of what is read-only nothing is changed.
#![deny(unsafe_code)]
mod ahead;
mod confine;
mod files;
mod listing;
mod nodes;
mod opcode;
mod operations;
#[allow(unsafe_code)]
mod sys;
mod tree;
mod watch;
mod wire;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, CWD, Mode, Uid, chmodat, chownat};
use rustix::net::sockopt::socket_peercred;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use tree::Tree;
use wire::{Fields, HEADER_BYTES, MESSAGE_BYTES_MAX, message};

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("hutch-files: {why}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), String> {
    let (mut socket, mut peer, mut places) = (None, None, Vec::new());
    let mut arguments = std::env::args_os().skip(1);
    while let Some(word) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("what of {}?", word.to_string_lossy()))?;
        match word.to_str() {
            Some("--listen") => socket = Some(value),
            Some("--peer") => peer = Some(user(&value)?),
            Some("--dir") => places.push((value, false)),
            Some("--dir-ro") => places.push((value, true)),
            _ => return Err(format!("what is meant by {}?", word.to_string_lossy())),
        }
    }
    let socket = socket.ok_or("no --listen")?;
    confine::bound_itself()?;
    let mut trees = Vec::new();
    for (place, read_only) in &places {
        trees.push(Tree::open(place.as_ref(), *read_only)?);
    }
    let listener = listen(&socket, peer)?;
    confine::give_up_rights()?;
    let stream = accept(&listener, peer.unwrap_or_else(rustix::process::geteuid))?;
    drop(listener);
    // Nobody is let in any more.
    let _ = std::fs::remove_file(&socket);
    rustix::process::umask(Mode::empty());
    let shown: Vec<_> = trees.iter().map(|tree| (tree.top(), tree.read_only)).collect();
    confine::shut_in(&shown)?;
    converse(stream, &mut trees)
}

fn user(value: &OsStr) -> Result<Uid, String> {
    let id = value.to_str().and_then(|text| text.parse().ok()).filter(|id| *id != u32::MAX);
    id.map(Uid::from_raw).ok_or_else(|| format!("{} is no user", value.to_string_lossy()))
}

/// Under another name until it is its user's: whoever sees it can connect.
fn listen(socket: &OsStr, peer: Option<Uid>) -> Result<UnixListener, String> {
    let to = |what: &str| format!("{}: cannot {what}", socket.to_string_lossy());
    let mut new = OsString::from(socket);
    new.push(".new");
    let listener = UnixListener::bind(&new).map_err(|error| format!("{}: {error}", to("listen")))?;
    chmodat(CWD, new.as_os_str(), Mode::from_raw_mode(0o600), AtFlags::empty())
        .map_err(|errno| format!("{}: {errno}", to("shut it")))?;
    if let Some(peer) = peer {
        chownat(CWD, new.as_os_str(), Some(peer), None, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| format!("{}: {errno}", to("give it away")))?;
    }
    std::fs::rename(&new, socket).map_err(|error| format!("{}: {error}", to("name it")))?;
    Ok(listener)
}

fn accept(listener: &UnixListener, peer: Uid) -> Result<UnixStream, String> {
    loop {
        let (stream, _) = listener.accept().map_err(|error| error.to_string())?;
        if socket_peercred(&stream).is_ok_and(|found| found.uid == peer) {
            return Ok(stream);
        }
    }
}

/// Until the other side hangs up.
fn converse(mut stream: UnixStream, trees: &mut [Tree]) -> Result<(), String> {
    let mut buffer = vec![0; MESSAGE_BYTES_MAX + 4];
    let mut filled = 0;
    let mut replies = Vec::new();
    loop {
        let (is_asked, is_changed) = wait(&stream, trees)?;
        if is_changed {
            tell(trees, &mut replies);
            send(&mut stream, &mut replies)?;
        }
        if !is_asked {
            continue;
        }
        let free = buffer.get_mut(filled..).unwrap_or_default();
        let count = stream.read(free).map_err(|error| error.to_string())?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let mut done = 0;
        while let Some(whole) = whole(buffer.get(done..filled).unwrap_or_default())? {
            done += whole.len();
            if let Some(reply) = answer(whole, trees) {
                replies.extend_from_slice(&reply);
            }
            if replies.len() >= REPLIES_BYTES {
                send(&mut stream, &mut replies)?;
            }
        }
        send(&mut stream, &mut replies)?;
        // What was asked for is on its way before this is looked for.
        for (mount, tree) in trees.iter_mut().enumerate() {
            for sent in ahead::look_ahead(tree) {
                replies.extend(message(mount as u32, AHEAD, &Ok(sent)));
            }
        }
        send(&mut stream, &mut replies)?;
        buffer.copy_within(done..filled, 0);
        filled -= done;
    }
}

/// What was asked together is answered together, up to so much.
const REPLIES_BYTES: usize = 64 * 1024;
/// In place of the number of a request: what a directory is like now, what others have changed, and what will be asked for next.
const SEEN: u64 = 3 << 62;
const CHANGED: u64 = SEEN | 1;
const AHEAD: u64 = SEEN | 2;

/// Whether the guest has asked for something, and whether others have changed something.
fn wait(stream: &UnixStream, trees: &[Tree]) -> Result<(bool, bool), String> {
    let mut fds = vec![PollFd::new(stream, PollFlags::IN)];
    for fd in trees.iter().filter_map(|tree| tree.watches.fd()) {
        fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
    }
    match poll(&mut fds, None) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok((false, false)),
        Err(errno) => return Err(errno.to_string()),
    }
    let has = |fd: &PollFd<'_>| !fd.revents().is_empty();
    Ok((fds.first().is_some_and(has), fds.iter().skip(1).any(has)))
}

/// What others have changed.
fn tell(trees: &mut [Tree], replies: &mut Vec<u8>) {
    for (mount, tree) in trees.iter_mut().enumerate() {
        for changed in tree.changes(&[]) {
            replies.extend(message(mount as u32, CHANGED, &Ok(changed)));
        }
    }
}

fn send(stream: &mut UnixStream, replies: &mut Vec<u8>) -> Result<(), String> {
    stream.write_all(replies).map_err(|error| error.to_string())?;
    replies.clear();
    Ok(())
}

/// The first message in there, if it is there to its end.
fn whole(bytes: &[u8]) -> Result<Option<&[u8]>, String> {
    let mut fields = Fields(bytes);
    let (Ok(_), Ok(length)) = (fields.u32(), fields.u32()) else { return Ok(None) };
    let length = length as usize;
    if !(HEADER_BYTES..=MESSAGE_BYTES_MAX).contains(&length) {
        return Err(format!("a message of {length} bytes"));
    }
    Ok(bytes.get(..length + 4))
}

fn answer(bytes: &[u8], trees: &mut [Tree]) -> Option<Vec<u8>> {
    let mut fields = Fields(bytes);
    let mount = fields.u32().ok()?;
    let header = fields.header().ok()?;
    let mut out = Vec::new();
    if header.opcode == opcode::TELL {
        tell(trees, &mut out);
        let left_ms = trees.iter().map(Tree::unheard_ms).max().unwrap_or(0);
        out.extend(message(mount, header.unique, &Ok(left_ms.to_le_bytes().to_vec())));
        return Some(out);
    }
    let tree = trees.get_mut(mount as usize)?;
    tree.ahead.asked(header.unique);
    let mut touched = watch::touches(tree, &header, Fields(fields.0));
    let answer = operations::answer(tree, &header, &mut fields);
    for closed in tree.files.take_closed() {
        touched.extend(tree.nodes.names(closed).unwrap_or_default().iter().cloned());
    }
    // In front of the answer, as whoever has it may ask for the other at once.
    if !touched.is_empty() {
        for changed in tree.changes(&touched) {
            out.extend(message(mount, CHANGED, &Ok(changed)));
        }
    }
    let Some(answer) = answer else { return Some(out) };
    if answer.is_ok()
        && let Some(seen) = operations::seen(tree, &header)
    {
        out.extend(message(mount, SEEN, &Ok(seen)));
    }
    out.extend(message(mount, header.unique, &answer));
    Some(out)
}
