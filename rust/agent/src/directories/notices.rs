//! What the kernel is told without having asked: that it is to forget something, or what is in a file that it will read next.
//!
//! Told by a thread of its own: the kernel takes such word only when it holds neither the directory nor the page, for both of which it may
//! be waiting for an answer.
use super::Mounted;
use super::known::u64_at;
use rustix::io::write;
use std::sync::mpsc::{Receiver, Sender};

/// Until the kernel has heard them; more are not told, and are seen when it asks anew.
pub const WAITING_MAX: usize = 4096;

// From <linux/fuse.h>: in place of an error.
const FORGET_INODE: i32 = 2;
const FORGET_ENTRY: i32 = 3;
const STORE: i32 = 4;
const ATTRIBUTES_ALONE: i64 = -1;
/// Of a small file, which is one page of memory.
const CONTENT_BYTES_MAX: usize = 4096;

#[derive(Debug)]
pub enum Notice {
    Changed {
        mount: usize,
        body: Vec<u8>,
    },
    /// What is in a file: `changes` says whether the kernel has changed anything since it was asked for.
    Content {
        mount: usize,
        changes: u64,
        body: Vec<u8>,
    },
    /// All before this one has been told; for how many ms the kernel may be wrong still.
    Reached {
        said: Sender<u32>,
        left_ms: u32,
    },
}

pub fn tell(notices: &Receiver<Notice>, mounted: &[Mounted]) {
    for notice in notices {
        match notice {
            Notice::Changed { mount, body } => {
                if let Some(one) = mounted.get(mount) {
                    changed(one, &body);
                }
            }
            Notice::Content { mount, changes, body } => {
                if let Some(one) = mounted.get(mount) {
                    content(one, changes, &body);
                }
            }
            Notice::Reached { said, left_ms } => drop(said.send(left_ms)),
        }
    }
}

/// Something else is in a node or about it, or by a name in a directory.
fn changed(one: &Mounted, body: &[u8]) {
    let (Some(node), Some(directory), Some(name)) = (u64_at(body, 0), u64_at(body, 8), body.get(16..)) else { return };
    if node != 0 {
        forget_inode(one, node, 0);
    }
    if directory != 0 {
        let length = u32::try_from(name.len()).unwrap_or(0);
        let entry = [directory.to_le_bytes().as_slice(), &length.to_le_bytes(), &[0; 4], name, &[0]].concat();
        said(one, FORGET_ENTRY, &entry);
        forget_inode(one, directory, ATTRIBUTES_ALONE);
    }
}

fn content(one: &Mounted, changes: u64, body: &[u8]) {
    let (Some(node), Some(content)) = (u64_at(body, 8), body.get(16..)) else { return };
    if content.len() > CONTENT_BYTES_MAX || one.known().changes() != changes {
        return;
    }
    let length = u32::try_from(content.len()).unwrap_or(0);
    let store = [node.to_le_bytes().as_slice(), &[0; 8], &length.to_le_bytes(), &[0; 4], content].concat();
    said(one, STORE, &store);
    // Something was written meanwhile, perhaps to that file.
    if one.known().changes() != changes {
        forget_inode(one, node, 0);
    }
}

/// From there on in it, and what it is like.
fn forget_inode(one: &Mounted, node: u64, from: i64) {
    said(one, FORGET_INODE, &[node.to_le_bytes(), from.to_le_bytes(), [0; 8]].concat());
}

/// What it does not know it need not forget: it says so, and that is all.
fn said(one: &Mounted, what: i32, body: &[u8]) {
    let length = u32::try_from(16 + body.len()).unwrap_or(0);
    let message = [length.to_le_bytes().as_slice(), &what.to_le_bytes(), &[0; 8], body].concat();
    let _ = write(&one.kernel, &message);
}
