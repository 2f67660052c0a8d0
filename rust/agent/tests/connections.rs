//! The connection itself, ports and tunnels: what a host that is hostile, cut off or impatient meets.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod support;
use hutch_agent::wire::value::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use support::*;

#[test]
fn the_agent_connects_again_after_the_host_has_gone() {
    let agent = Agent::start();
    for _ in 0..3 {
        let mut client = agent.accept();
        assert_eq!(number(&client.call("hello", Value::Nil).expect("hello"), "pid"), u64::from(agent.pid()));
    }
}

#[test]
fn whatever_is_sent_the_next_preamble_is_answered() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let mark = [1, 2, 3, 4];
    let broken: Vec<Vec<u8>> = vec![
        vec![0; 70_000],
        vec![0xff; 70_000],
        b"HUTCH".to_vec(),
        b"HUTCH\x01\r\nabc".to_vec(),
        [u32::MAX.to_le_bytes().as_slice(), &[3, 0, 0, 0, 1, 0, 0, 0]].concat(),
        Client::bytes(OPEN, 1, 0, b"\xc1", mark),
        Client::bytes(DATA, 9, 0, &[0; 65_536], mark)[..30_000].to_vec(),
        Client::bytes(2, 1, 0, b"\xc0", mark),
    ];
    for (n, bytes) in broken.iter().enumerate() {
        client.raw(bytes);
        let nonce = [mark[0], n as u8 + 1, 9, 9, 1, 1, 1, 1];
        // What fills up a frame that was cut.
        client.raw(&vec![0; 65_600]);
        client.reconnect(nonce);
        client.call("hello", Value::Nil).expect("hello");
    }
}

#[test]
fn another_version_is_answered_with_ours() {
    let agent = Agent::start();
    let mut stream = agent.accept_raw();
    stream.write_all(b"HUTCH\x02\r\n12345678").expect("writes");
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HUTCH\x01\r\n12345678");
    let mut client = Client::greet(stream);
    client.call("hello", Value::Nil).expect("hello");
}

#[test]
fn a_host_that_lies_loses_its_connection_and_nothing_else() {
    let agent = Agent::start();
    let mut client = agent.accept();
    client.run("before", &["true"]);
    type Lie = fn(&mut Client);
    let lies: [(&str, Lie); 5] = [
        ("data beyond the credit", |client| {
            let params = Value::map([
                ("id", "cat".into()),
                ("argv", strings(&["sleep", "5"])),
                ("stdin", "pipe".into()),
                ("whenUnread", "block".into()),
            ]);
            let stream = client.open("process.start", params);
            for _ in 0..5 {
                client.send(DATA, stream, &[0; 65_536]);
            }
        }),
        ("the same stream twice", |client| {
            client.send(OPEN, 77, &Value::map([("m", "watchEvents".into())]).encode());
            client.send(OPEN, 77, &Value::map([("m", "watchEvents".into())]).encode());
        }),
        ("more streams than are allowed", |client| {
            for stream in 1..=1025 {
                client.send(OPEN, stream, &Value::map([("m", "watchEvents".into())]).encode());
            }
        }),
        ("a frame of another connection", |client| {
            let bytes = Client::bytes(PING, 0, 0, b"12345678", [9, 9, 9, 9]);
            client.raw(&bytes);
        }),
        ("pings without end", |client| {
            let pings: Vec<u8> = Client::bytes(PING, 0, 0, b"12345678", [9, 9, 9, 9]);
            client.raw(&pings.repeat(2000));
        }),
    ];
    for (n, (name, lie)) in lies.into_iter().enumerate() {
        lie(&mut client);
        let nonce = [n as u8 + 1, 5, 5, 5, 5, 5, 5, 5];
        client.reconnect(nonce);
        assert_eq!(client.run(&format!("after{n}"), &["echo", "well"]).stdout(), "well\n", "{name}");
    }
}

#[test]
fn a_call_of_megabytes_comes_in_parts() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let words: Vec<String> = (0..12).map(|n| format!("{n}").repeat(60_000)).collect();
    let mut argv = vec!["sh", "-c", "echo $# ${#12}", "sh"];
    argv.extend(words.iter().map(String::as_str));
    let request = Value::map([("m", "process.start".into()), ("p", start("large", &argv))]).encode();
    assert!(request.len() > 800_000);
    let mut rest = request.as_slice();
    while let Some((part, more)) = rest.split_at_checked(65_536) {
        client.send(PART, 7, part);
        // What other streams have to say may come between.
        client.send(PING, 0, b"12345678");
        rest = more;
    }
    client.send(OPEN, 7, rest);
    client.reply(7).expect("it starts");
    assert_eq!(client.rest(7).stdout(), "12 120000\n");
    assert_eq!(client.run("small", &["echo", "well"]).stdout(), "well\n");
}

#[test]
fn parts_without_end_or_of_two_calls_at_a_time_end_the_connection() {
    let agent = Agent::start();
    let mut client = agent.accept();
    type Lie = fn(&mut Client);
    let lies: [(&str, Lie); 4] = [
        ("parts without end", |client| {
            for _ in 0..65 {
                client.send(PART, 7, &[0; 65_536]);
            }
        }),
        ("parts of two calls", |client| {
            client.send(PART, 7, b"\x82");
            client.send(PART, 8, b"\x82");
        }),
        ("a call within the parts of another", |client| {
            client.send(PART, 7, b"\x82");
            client.send(OPEN, 8, &Value::map([("m", "hello".into())]).encode());
        }),
        ("parts of the connection before", |client| client.send(PART, 7, b"\x82")),
    ];
    for (n, (name, lie)) in lies.into_iter().enumerate() {
        lie(&mut client);
        client.reconnect([n as u8 + 1, 6, 6, 6, 6, 6, 6, 6]);
        assert_eq!(client.run(&format!("after{n}"), &["echo", "well"]).stdout(), "well\n", "{name}");
    }
}

#[test]
fn frames_that_come_too_late_are_dropped() {
    let agent = Agent::start();
    let mut client = agent.accept();
    for kind in [END, CANCEL] {
        client.send(kind, 4711, b"");
    }
    client.send(DATA, 4711, b"x");
    client.send(CREDIT, 4711, &[1, 0, 0, 0]);
    client.send(PING, 0, b"12345678");
    let pong = client.next_of(0);
    assert_eq!((pong.kind, pong.payload.as_slice()), (PONG, b"12345678".as_slice()));
}

#[test]
fn a_request_that_cannot_be_read_is_refused_by_name() {
    let agent = Agent::start();
    let mut client = agent.accept();
    client.send(OPEN, 1, b"\xc1");
    assert_eq!(text(&client.reply(1).expect_err("refused"), "code"), "invalid_argument");
    client.send(OPEN, 2, &Value::map([("p", Value::Nil)]).encode());
    assert!(text(&client.reply(2).expect_err("refused"), "message").contains("m is missing"));
    client.send(OPEN, 3, &Value::map([("m", "no.such.method".into())]).encode());
    assert_eq!(text(&client.reply(3).expect_err("refused"), "code"), "unimplemented");
    for (stream, id) in [(4, "sp ace"), (5, ""), (6, "ü")] {
        client.send(OPEN, stream, &Value::map([("m", "process.start".into()), ("p", start(id, &["true"]))]).encode());
        assert_eq!(text(&client.reply(stream).expect_err("refused"), "code"), "invalid_argument");
    }
}

#[test]
fn a_tunnel_carries_bytes_both_ways_and_half_closes() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listens");
    let port = listener.local_addr().expect("an address").port();
    let unix_path = agent.path("server.sock");
    let unix = UnixListener::bind(&unix_path).expect("listens");
    // Counts what it gets, and answers with the count once the other side has ended.
    let count_and_answer = |mut peer: Box<dyn ReadWrite>| {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).expect("reads");
        peer.write_all(all.len().to_string().as_bytes()).expect("writes");
        peer.write_all(&all).expect("writes");
    };
    let servers = [
        std::thread::spawn(move || count_and_answer(Box::new(listener.accept().expect("a peer").0))),
        std::thread::spawn(move || count_and_answer(Box::new(unix.accept().expect("a peer").0))),
    ];
    let targets = [
        Value::map([("tcp", Value::map([("host", "localhost".into()), ("port", port.into())]))]),
        Value::map([("unix", unix_path.as_str().into())]),
    ];
    for target in targets {
        let stream = client.open("connect", target);
        let sent = vec![b'z'; 200_000];
        for part in sent.chunks(50_000) {
            client.send(DATA, stream, part);
        }
        client.send(END, stream, b"");
        client.reply(stream).expect("connected");
        let rest = client.rest(stream);
        assert_eq!(rest.data[0].len(), 200_006);
        assert!(rest.data[0].starts_with(b"200000z"));
        assert_eq!((rest.ends, rest.close), (vec![0], Ok(Value::Nil)));
    }
    for server in servers {
        server.join().expect("the server ends");
    }
    let refused =
        client.call("connect", Value::map([("tcp", Value::map([("port", port.into())]))])).expect_err("nobody is there");
    assert_eq!((text(&refused, "code"), text(&refused, "errno")), ("unavailable".to_owned(), "ECONNREFUSED".to_owned()));
}

/// A port inside that the host answers: bytes both ways, no more at a time than are taken, and gone with its stream.
#[test]
fn a_port_of_the_sandbox_is_answered_by_the_host() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let listener = client.open("listen", Value::map([("port", 0.into())]));
    let port = number(&client.reply(listener).expect("listens"), "port") as u16;
    let taken = client.call("listen", Value::map([("port", port.into())])).expect_err("it is taken");
    assert_eq!(text(&taken, "errno"), "EADDRINUSE");
    for nth in 0..40_u32 {
        let peer = std::thread::spawn(move || {
            let mut peer = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connects");
            peer.write_all(format!("from {nth}").as_bytes()).expect("writes");
            peer.shutdown(std::net::Shutdown::Write).expect("ends");
            let mut answer = String::new();
            peer.read_to_string(&mut answer).expect("reads");
            answer
        });
        let arrived = client.next_of(listener).message();
        assert_eq!((text(&arrived, "e"), text(&arrived, "address")), ("arrived".to_owned(), "127.0.0.1".to_owned()));
        let stream = client.open("accept", Value::map([("id", number(&arrived, "id").into())]));
        client.reply(stream).expect("it is ours");
        client.send(DATA, stream, b"answered");
        client.send(END, stream, b"");
        let rest = client.rest(stream);
        assert_eq!((rest.data[0].as_slice(), rest.close), (format!("from {nth}").as_bytes(), Ok(Value::Nil)));
        assert_eq!(peer.join().expect("the peer ends"), "answered");
    }
    // More than are told at a time: each that is taken makes room for the next.
    let peers: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connects")).collect();
    let mut told = Vec::new();
    for nth in 0..20 {
        if told.len() == nth {
            told.push(number(&client.next_of(listener).message(), "id"));
        }
        let stream = client.open("accept", Value::map([("id", told[nth].into())]));
        client.reply(stream).expect("it is ours");
        client.send(CANCEL, stream, b"");
    }
    drop(peers);
    let nobody = client.call("accept", Value::map([("id", told[0].into())])).expect_err("it was taken");
    assert_eq!(text(&nobody, "code"), "not_found");
    client.send(CANCEL, listener, b"");
    client.rest(listener);
    let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect_err("nobody listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// A read that stops before all of it has come holds up nothing: its server says no more until it is answered.
#[test]
fn what_stops_a_read_short_is_no_reason_to_wait() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
    const TIMES: usize = 30; // what is there together is a matter of chance
    let agent = Agent::start();
    let mut client = agent.accept();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listens");
    let tcp = Value::map([("tcp", Value::map([("port", listener.local_addr().expect("an address").port().into())]))]);
    let unix_path = agent.path("short.sock");
    let unix = UnixListener::bind(&unix_path).expect("listens");
    let server = std::thread::spawn(move || {
        let mut answer = [0; 1];
        for _ in 0..TIMES {
            let (mut peer, _) = listener.accept().expect("a peer");
            peer.write_all(b"at its end").expect("writes");
        }
        for _ in 0..TIMES {
            let (mut peer, _) = listener.accept().expect("a peer");
            peer.read_exact(&mut answer).expect("it is asked");
            peer.write_all(b"before").expect("writes");
            send(&peer, b"!", SendFlags::OOB).expect("writes");
            peer.write_all(b"behind").expect("writes");
            peer.read_exact(&mut answer).expect("it is answered");
        }
        for _ in 0..TIMES {
            let (mut peer, _) = unix.accept().expect("a peer");
            peer.read_exact(&mut answer).expect("it is asked");
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let given = [std::os::fd::AsFd::as_fd(&unix)];
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&given)));
            sendmsg(&peer, &[std::io::IoSlice::new(b"before")], &mut ancillary, SendFlags::empty()).expect("writes");
            peer.write_all(b"behind").expect("writes");
            peer.read_exact(&mut answer).expect("it is answered");
        }
    });
    for _ in 0..TIMES {
        let stream = client.open("connect", tcp.clone());
        client.reply(stream).expect("connected");
        client.send(END, stream, b"");
        let rest = client.rest(stream);
        assert_eq!((rest.data[0].as_slice(), rest.ends), (b"at its end".as_slice(), vec![0]));
    }
    let unix = Value::map([("unix", unix_path.as_str().into())]);
    for target in std::iter::repeat_n(tcp, TIMES).chain(std::iter::repeat_n(unix, TIMES)) {
        let stream = client.open("connect", target);
        client.reply(stream).expect("connected");
        client.send(DATA, stream, b"?");
        let mut said = Vec::new();
        while said.len() < 12 {
            let frame = client.next_of(stream);
            if frame.kind == DATA {
                said.extend_from_slice(&frame.payload);
            }
        }
        assert_eq!(said, b"beforebehind");
        client.send(DATA, stream, b".");
        client.send(END, stream, b"");
        client.rest(stream);
    }
    server.join().expect("the server ends");
}

/// Processor time that the agent has had, in nanoseconds.
fn spent(agent: &Agent) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("it runs");
    let of = |path: std::path::PathBuf| std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
    tasks.flatten().filter_map(|task| of(task.path()).split_whitespace().next()?.parse::<u64>().ok()).sum()
}

/// Until nothing happens in it: whoever is told again and again of what it cannot take does not rest.
fn rests(agent: &Agent, what: &str) {
    const WINDOW: std::time::Duration = std::time::Duration::from_millis(200);
    eventually(what, || {
        let before = spent(agent);
        std::thread::sleep(WINDOW);
        (u128::from(spent(agent) - before) < WINDOW.as_nanos() / 10).then_some(())
    });
}

#[test]
fn a_tunnel_that_cannot_go_on_costs_nothing() {
    const CREDIT_START: usize = 1_048_576;
    const MUCH: usize = 4 * CREDIT_START;
    let agent = Agent::start();
    let mut client = agent.accept();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listens");
    let tcp = Value::map([("tcp", Value::map([("port", listener.local_addr().expect("an address").port().into())]))]);
    let joined = |client: &mut Client| {
        let stream = client.open("connect", tcp.clone());
        client.reply(stream).expect("connected");
        (stream, listener.accept().expect("a peer").0)
    };
    let take = |client: &mut Client, stream: u32, bytes: usize| {
        let mut taken = 0;
        while taken < bytes {
            let frame = client.next_of(stream);
            assert_eq!(frame.kind, DATA);
            taken += frame.payload.len();
        }
        assert_eq!(taken, bytes);
    };

    let (long, mut peer) = joined(&mut client);
    let speaker = std::thread::spawn(move || peer.write_all(&vec![b'x'; MUCH]).expect("it is heard out"));
    take(&mut client, long, CREDIT_START);
    rests(&agent, "the agent waits for credit");

    let (broken, mut peer) = joined(&mut client);
    client.send(DATA, broken, b"never read: so its end is a reset");
    peer.write_all(&vec![b'x'; CREDIT_START]).expect("writes");
    take(&mut client, broken, CREDIT_START);
    drop(peer);
    rests(&agent, "the agent waits for credit to tell of a reset");

    let path = agent.path("deaf.sock");
    let deaf = UnixListener::bind(&path).expect("listens");
    let stream = client.open("connect", Value::map([("unix", path.as_str().into())]));
    client.reply(stream).expect("connected");
    let (peer, _) = deaf.accept().expect("a peer");
    peer.shutdown(std::net::Shutdown::Write).expect("ends its side");
    // More than a socket holds: the rest waits in the agent.
    (0..4).for_each(|_| client.send(DATA, stream, &[b'y'; 65_536]));
    rests(&agent, "the agent waits for a peer that reads nothing");
    drop(peer);
    rests(&agent, "the agent has given up who reads nothing and is gone");

    client.credit(long, MUCH);
    rests(&agent, "the agent waits for a host that reads nothing");
    take(&mut client, long, MUCH - CREDIT_START);
    assert_eq!(client.next_of(long).kind, END);
    speaker.join().expect("it has said all");
}

trait ReadWrite: Read + Write + Send {}
impl<T: Read + Write + Send> ReadWrite for T {}

#[test]
fn ports_are_told_as_they_open_and_close() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let watch = client.open("ports.watch", Value::Nil);
    client.reply(watch).expect("watches");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listens");
    let port = u64::from(listener.local_addr().expect("an address").port());
    let wait = |client: &mut Client, name: &str| loop {
        let event = client.next_of(watch).message();
        if text(&event, "e") == name && number(&event, "port") == port {
            return event;
        }
    };
    let opened = wait(&mut client, "opened");
    assert_eq!((text(&opened, "protocol"), text(&opened, "address")), ("tcp".to_owned(), "127.0.0.1".to_owned()));
    assert_eq!(number(&opened, "pid"), u64::from(std::process::id()));
    let list = client.call("ports.list", Value::Nil).expect("a list");
    let Some(Value::Array(ports)) = list.get("ports") else { panic!("{list:?}") };
    assert!(ports.iter().any(|entry| number(entry, "port") == port));
    drop(listener);
    wait(&mut client, "closed");
}

#[test]
fn a_checkpoint_finds_no_socket_open_and_the_agent_comes_back() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let process = client.open("process.start", start("stays", &["sleep", "30"]));
    client.reply(process).expect("it starts");
    client.call("prepareCheckpoint", Value::map([("reconnectAfterMs", 3_000.into())])).expect("it lets go");
    let sockets = || {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("fds");
        entries
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .filter(|link| link.to_string_lossy().starts_with("socket:"))
            .count()
    };
    eventually("the socket to be closed", || (sockets() == 0).then_some(()));
    let mut client = agent.accept();
    let list = format!("{:?}", client.call("process.list", Value::Nil).expect("a list"));
    assert!(list.contains("stays"), "{list}");
}

#[test]
fn metrics_count_forward() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let first = client.call("metrics", Value::Nil).expect("metrics");
    let second = client.call("metrics", Value::Nil).expect("metrics");
    for (group, name) in [("cpu", "userUs"), ("cpu", "systemUs"), ("disk", "readBytes"), ("network", "rxBytes")] {
        let of = |value: &Value| number(value.get(group).expect(group), name);
        assert!(of(&first) <= of(&second), "{group}.{name}");
    }
    assert!(number(first.get("memory").expect("memory"), "totalBytes") > 0);
    client.call("sync", Value::Nil).expect("synced");
}
