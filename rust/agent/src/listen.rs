//! `listen` and `accept`: a port of the sandbox's loopback that the host answers. The listener lives as long as its stream; who
//! comes is told by an event, and is a tunnel once the host has taken it.
use crate::agent::{Agent, Token};
use crate::connect::Tunnel;
use crate::fault::Fault;
use crate::jobs::Ticket;
use crate::stream::Kind;
use crate::wire::fields::Fields;
use crate::wire::value::Value;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketFlags, SocketType, acceptfrom_with, bind, getsockname, listen, socket_with, sockopt,
};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

/// Those that the host has not taken yet; more wait in the kernel.
const WAITING_MAX: usize = 16;
const BACKLOG: i32 = 128;

pub struct Listener {
    socket: OwnedFd,
    waiting: VecDeque<(u64, OwnedFd)>,
}

impl Listener {
    fn pop(&mut self, id: u64) -> Option<OwnedFd> {
        let at = self.waiting.iter().position(|(waiting, _)| *waiting == id)?;
        self.waiting.remove(at).map(|(_, socket)| socket)
    }
}

fn address_of(address: Option<SocketAddrAny>) -> Option<SocketAddr> {
    SocketAddr::try_from(address?).ok()
}

impl Agent {
    pub fn listen(&mut self, ticket: Ticket, p: Fields<'_>) -> Result<(), Fault> {
        let failed = |errno| Fault::system("the port in the sandbox", errno);
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, p.opt_u16("port")?.unwrap_or(0)));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).map_err(failed)?;
        sockopt::set_socket_reuseaddr(&socket, true).map_err(failed)?;
        bind(&socket, &wanted).map_err(failed)?;
        listen(&socket, BACKLOG).map_err(failed)?;
        let bound = getsockname(&socket).map_err(failed)?;
        let port = address_of(Some(bound)).map_or(wanted.port(), |address| address.port());
        self.watch(socket.as_fd(), Token::Tunnel { stream: ticket.stream })?;
        let listener = Listener { socket, waiting: VecDeque::new() };
        self.with_stream(ticket.stream, |stream| {
            stream.kind = Kind::Listener(listener);
            stream.reply(&Value::map([("port", port.into())]));
        });
        Ok(())
    }

    /// Tells of all who have come, as long as there is room for them.
    pub fn take_arrivals(&mut self, number: u32) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        while let Kind::Listener(listener) = &mut stream.kind
            && listener.waiting.len() < WAITING_MAX
        {
            let (socket, peer) = match acceptfrom_with(&listener.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(arrived) => arrived,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                // Also where no descriptor is left: the next who comes is another try.
                Err(_) => break,
            };
            let _ = sockopt::set_tcp_nodelay(&socket, true);
            self.arrivals += 1;
            listener.waiting.push_back((self.arrivals, socket));
            let peer = address_of(peer).unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
            let arrived = [("id", self.arrivals.into()), ("address", peer.ip().to_string().into()), ("port", peer.port().into())];
            stream.event("arrived", Value::map(arrived));
        }
        self.ready(number);
    }

    /// One who has come is the stream's from now on.
    pub fn accept(&mut self, ticket: Ticket, p: Fields<'_>) -> Result<(), Fault> {
        let id = p.u64("id")?;
        let found = self.streams.iter_mut().find_map(|(number, stream)| match &mut stream.kind {
            Kind::Listener(listener) => listener.pop(id).map(|socket| (*number, socket)),
            _ => None,
        });
        let (listener, socket) = found.ok_or_else(|| Fault::not_found(format!("nobody waits with the number {id}")))?;
        let mut tunnel = Tunnel::new(socket, false);
        tunnel.watch(self.epoll.as_fd(), ticket.stream)?;
        self.with_stream(ticket.stream, |stream| {
            stream.kind = Kind::Tunnel(Box::new(tunnel));
            stream.reply(&Value::Nil);
        });
        self.take_arrivals(listener);
        Ok(())
    }
}
