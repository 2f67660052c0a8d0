//! Refused connections. The passt of Debian 12 passes a refusal on as a TCP reset that acknowledges nothing, which
//! the kernel of whoever connects must ignore (RFC 9293, 3.10.7.3): it would go on trying for two minutes. The number
//! of acknowledgement in it is right: only the flag is missing.

const ETHERNET_BYTES: usize = 14;
const ETHERNET_IPV4: [u8; 2] = [0x08, 0x00];
const IPV4_BYTES_MIN: usize = 20;
const TCP_BYTES_MIN: usize = 20;
const TCP: u8 = 6;
/// More fragments, and the offset of this one.
const FRAGMENT: u16 = 0x3fff;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Makes of an IPv4 packet that is such a reset one with its ACK, and leaves any other as it is. Says whether it was one.
pub fn acknowledge_reset(packet: &mut [u8]) -> bool {
    acknowledged(packet).is_some()
}

/// The same for a frame of Ethernet.
pub fn acknowledge_reset_in(frame: &mut [u8]) -> bool {
    match frame.split_at_mut_checked(ETHERNET_BYTES) {
        Some((header, packet)) if header.ends_with(&ETHERNET_IPV4) => acknowledge_reset(packet),
        _ => false,
    }
}

fn acknowledged(packet: &mut [u8]) -> Option<()> {
    let (version, header_bytes) = (packet.first()? >> 4, usize::from(packet.first()? & 15) * 4);
    let fragment = u16::from_be_bytes(*packet.get(6..8)?.first_chunk()?) & FRAGMENT;
    if version != 4 || header_bytes < IPV4_BYTES_MIN || *packet.get(9)? != TCP || fragment != 0 {
        return None;
    }
    let segment = packet.get_mut(header_bytes..).filter(|segment| segment.len() >= TCP_BYTES_MIN)?;
    if *segment.get(13)? & (RST | ACK) != RST {
        return None;
    }
    *segment.get_mut(13)? |= ACK;
    let sum = segment.get_mut(16..18)?.first_chunk_mut::<2>()?;
    *sum = with_added(u16::from_be_bytes(*sum), ACK.into()).to_be_bytes();
    Some(())
}

/// A checksum (RFC 1071) once `more` is added to one of its words: RFC 1624, equation 3.
fn with_added(checksum: u16, more: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(more);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::{acknowledge_reset, acknowledge_reset_in, with_added};

    /// RST alone, from 10.1.2.3:80 to 192.0.0.2:40000, with its checksums.
    const RESET: [u8; 40] = [
        0x45, 0, 0, 40, 0, 0, 0, 0, 255, 6, 0, 0, 10, 1, 2, 3, 192, 0, 0, 2, // IP
        0, 80, 0x9c, 0x40, 0, 0, 0, 1, 0xaf, 0xa2, 0x92, 0xe0, 0x50, 4, 0, 0, 0, 0, 0, 0, // TCP
    ];

    /// Of a packet's TCP segment, with the addresses and the length: zero where the checksum in it is right.
    fn sum(packet: &[u8]) -> u16 {
        let (header, segment) = packet.split_at(usize::from(packet[0] & 15) * 4);
        let around = [&header[12..20], &[0, 6], &(segment.len() as u16).to_be_bytes(), segment].concat();
        let mut sum: u32 =
            around.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    fn summed(mut packet: Vec<u8>) -> Vec<u8> {
        let at = usize::from(packet[0] & 15) * 4 + 16;
        let sum = sum(&packet).to_be_bytes();
        packet[at..at + 2].copy_from_slice(&sum);
        packet
    }

    #[test]
    fn a_bare_reset_gets_its_ack_and_keeps_a_checksum_that_is_right() {
        let mut with_options = RESET.to_vec();
        with_options[0] = 0x46;
        with_options.splice(20..20, [1, 1, 1, 0]);
        for (packet, tcp_at) in [(RESET.to_vec(), 20), (with_options, 24)] {
            // Every value that the checksum may have: the port makes it.
            for port in (0..=u16::MAX).step_by(7) {
                let mut packet = packet.clone();
                packet[tcp_at + 2..tcp_at + 4].copy_from_slice(&port.to_be_bytes());
                let before = summed(packet);
                let mut after = before.clone();
                assert!(acknowledge_reset(&mut after));
                assert_eq!((after[tcp_at + 13], sum(&after)), (0x14, 0), "{port}");
                after[tcp_at + 13] = before[tcp_at + 13];
                after[tcp_at + 16..tcp_at + 18].copy_from_slice(&before[tcp_at + 16..tcp_at + 18]);
                assert_eq!(after, before);
            }
        }
        let mut frame = [&[0; 12], &[8, 0][..], &summed(RESET.to_vec())].concat();
        assert!(acknowledge_reset_in(&mut frame));
        assert_eq!(frame[14 + 20 + 13], 0x14);
    }

    #[test]
    fn whatever_else_comes_is_left_as_it_is() {
        let other = |at: usize, byte: u8| {
            let mut packet = RESET.to_vec();
            packet[at] = byte;
            packet
        };
        let mut others: Vec<Vec<u8>> = (0..RESET.len()).map(|length| RESET[..length].to_vec()).collect();
        // Of another version, with an impossible header, a fragment, not TCP, with an ACK, no reset.
        others.extend(
            [(0, 0x65), (0, 0x44), (0, 0x4f), (6, 0x20), (7, 1), (9, 17), (33, 0x14), (33, 0x02), (33, 0x10)]
                .map(|(at, byte)| other(at, byte)),
        );
        for mut packet in others {
            let before = packet.clone();
            assert!(!acknowledge_reset(&mut packet), "{before:?}");
            assert_eq!(packet, before);
        }
        let mut frame = [&[0; 12], &[0x86, 0xdd][..], &RESET].concat();
        assert!(!acknowledge_reset_in(&mut frame) && !acknowledge_reset_in(&mut frame[..13]));
    }

    #[test]
    fn a_sum_goes_round_as_the_standard_has_it() {
        // RFC 1624, 4: 0x5555 becomes 0x3285, which is 0xdd30 more, and the sum 0xdd2f becomes zero, not minus zero.
        assert_eq!(with_added(0xdd2f, 0xdd30 - 1), 0x0000);
        assert_eq!(with_added(0xffff, 0x10), 0xffef);
    }
}
