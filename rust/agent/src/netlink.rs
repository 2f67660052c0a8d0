//! Addresses, routes and links by rtnetlink: one socket, one message to the kernel with all that is
//! wanted, one answer per part.
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use std::net::IpAddr;

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTNH_F_ONLINK: u32 = 4;
const IFF_UP: u32 = 1;

/// Messages that are sent together.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    count: u32,
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Batch {
    fn message(&mut self, kind: u16, flags: u16, body: &[u8], attributes: &[(u16, &[u8])]) {
        let mut payload = body.to_vec();
        for (name, value) in attributes {
            payload.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
            payload.extend_from_slice(&name.to_ne_bytes());
            payload.extend_from_slice(value);
            payload.resize(payload.len().next_multiple_of(4), 0);
        }
        self.count += 1;
        self.bytes.extend_from_slice(&(payload.len() as u32 + 16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        self.bytes.extend_from_slice(&self.count.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&payload);
    }

    /// Address, MTU and (where given) the administrative state of a link. The hardware address is set
    /// before the link goes up.
    pub fn link(&mut self, index: u32, mac: Option<[u8; 6]>, mtu: Option<u32>, up: Option<bool>) {
        let mut body = vec![0; 4];
        body.extend_from_slice(&index.to_ne_bytes());
        let flag = |wanted: bool| if wanted { IFF_UP } else { 0 };
        body.extend_from_slice(&flag(up == Some(true)).to_ne_bytes());
        body.extend_from_slice(&flag(up.is_some()).to_ne_bytes());
        let mtu = mtu.map(u32::to_ne_bytes);
        let mut attributes: Vec<(u16, &[u8])> = Vec::new();
        attributes.extend(mac.as_ref().map(|mac| (IFLA_ADDRESS, mac.as_slice())));
        attributes.extend(mtu.as_ref().map(|mtu| (IFLA_MTU, mtu.as_slice())));
        self.message(RTM_NEWLINK, 0, &body, &attributes);
    }

    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) {
        self.address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, address, prefix);
    }

    pub fn delete_address(&mut self, index: u32, address: IpAddr, prefix: u8) {
        self.address(RTM_DELADDR, 0, index, address, prefix);
    }

    fn address(&mut self, kind: u16, flags: u16, index: u32, address: IpAddr, prefix: u8) {
        let mut body = vec![family(address), prefix, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        let octets = octets(address);
        self.message(kind, flags, &body, &[(IFA_LOCAL, &octets), (IFA_ADDRESS, &octets)]);
    }

    /// The default route. The gateway need not be in the address's own network.
    pub fn default_route(&mut self, index: u32, gateway: IpAddr) {
        // family, no prefixes, table main, protocol static, scope universe, type unicast
        let mut body = vec![family(gateway), 0, 0, 0, 254, 4, 0, 1];
        body.extend_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
        let octets = octets(gateway);
        self.message(
            RTM_NEWROUTE,
            NLM_F_CREATE | NLM_F_REPLACE,
            &body,
            &[(RTA_OIF, &index.to_ne_bytes()), (RTA_GATEWAY, &octets)],
        );
    }

    /// Sends all; the errors per message, in order.
    pub fn send(self) -> Result<Vec<Result<(), Errno>>, Errno> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?; // protocol 0 is rtnetlink
        send(&socket, &self.bytes, SendFlags::empty())?;
        let mut results = Vec::new();
        let mut buffer = [0; 8192];
        while results.len() < self.count as usize {
            let (length, _) = recv(&socket, &mut buffer, RecvFlags::empty())?;
            if length == 0 {
                return Err(Errno::IO);
            }
            results.extend(acknowledgements(buffer.get(..length).unwrap_or_default()));
        }
        Ok(results)
    }
}

/// The results in a datagram of the kernel's.
fn acknowledgements(mut rest: &[u8]) -> Vec<Result<(), Errno>> {
    let mut results = Vec::new();
    while let Some(([l0, l1, l2, l3, k0, k1], _)) = rest.split_first_chunk::<6>() {
        let length = u32::from_ne_bytes([*l0, *l1, *l2, *l3]) as usize;
        let error = rest.get(16..).and_then(|body| body.first_chunk::<4>());
        if let (NLMSG_ERROR, Some(error)) = (u16::from_ne_bytes([*k0, *k1]), error) {
            let error = i32::from_ne_bytes(*error);
            results.push(if error == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(-error)) });
        }
        rest = rest.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
    }
    results
}

/// `10.0.2.15/24`
pub fn parse_address(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
}

/// `52:54:00:12:34:56`
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_with_their_bounds() {
        assert_eq!(parse_address("10.0.2.15/24"), Some(("10.0.2.15".parse().expect("address"), 24)));
        assert_eq!(parse_address("fd00::2/64").map(|(_, prefix)| prefix), Some(64));
        for wrong in ["10.0.2.15", "10.0.2.15/33", "10.0.2/24", "::1/129", "x/1", "1.2.3.4/-1"] {
            assert_eq!(parse_address(wrong), None, "{wrong}");
        }
        assert_eq!(parse_mac("52:54:00:12:34:56"), Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        for wrong in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "5:54:00:12:34:56", "zz:54:00:12:34:56"] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_acknowledgement_in_a_datagram_counts() {
        let ack = |error: i32| {
            let mut bytes = 36u32.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&NLMSG_ERROR.to_ne_bytes());
            bytes.extend_from_slice(&[0; 10]);
            bytes.extend_from_slice(&error.to_ne_bytes());
            bytes.resize(36, 0);
            bytes
        };
        let datagram = [ack(0), ack(-17)].concat();
        assert_eq!(acknowledgements(&datagram), [Ok(()), Err(Errno::EXIST)]);
        assert_eq!(acknowledgements(&datagram[..20]).len(), 1);
        assert!(acknowledgements(&[0; 64]).is_empty());
    }
}
