//! The generation of this host's nftables rules: a number that the kernel counts up at each change, whoever
//! makes it. With it the daemon knows, without starting a program, that the rules are still its own.
use std::io::{self, Read, Write};

use crate::sys;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWGEN: u16 = 15;
const NFT_MSG_GETGEN: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NFTA_GEN_ID: u16 = 1;
/// `nlmsghdr` and `nfgenmsg`.
const HEADER_BYTES: usize = 16 + 4;

pub fn generation() -> io::Result<u32> {
    let mut socket = sys::netfilter_socket()?;
    socket.write_all(&request())?;
    let mut answer = [0; 512];
    let length = socket.read(&mut answer)?;
    parse(answer.get(..length).unwrap_or_default()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend((HEADER_BYTES as u32).to_ne_bytes());
    bytes.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN).to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.resize(HEADER_BYTES, 0); // sequence, port, family, version and resource
    bytes
}

/// The number in the kernel's answer; an error message or anything else has none.
fn parse(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    if kind != NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN {
        return None;
    }
    let mut rest = answer.get(HEADER_BYTES..)?;
    while let Some((header, _)) = rest.split_first_chunk::<4>() {
        let [l0, l1, k0, k1] = *header;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if u16::from_ne_bytes([k0, k1]) == NFTA_GEN_ID {
            return Some(u32::from_be_bytes(*rest.get(4..length)?.first_chunk()?));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, attributes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.splice(4..6, kind.to_ne_bytes());
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn the_number_is_found_behind_other_attributes_and_never_made_up() {
        let newgen = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN;
        let other = [6, 0, 2, 0, 9, 9, 0, 0];
        let id = [8, 0, 1, 0, 0, 0, 1, 2];
        assert_eq!(parse(&answer(newgen, &[other, id].concat())), Some(258));
        assert_eq!(parse(&answer(newgen, &other)), None);
        assert_eq!(parse(&answer(2, &id)), None);
        for cut in 0..answer(newgen, &id).len() {
            assert_eq!(parse(&answer(newgen, &id)[..cut]), None);
        }
    }
}
