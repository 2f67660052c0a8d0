//! Processes, as a host sees them: started, followed, fed, signalled, ended.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod support;
use hutch_agent::wire::value::Value;
use std::time::{Duration, Instant};
use support::*;

fn with(base: Value, extra: &[(&str, Value)]) -> Value {
    extra.iter().fold(base, |base, (name, value)| base.with(name, Some(value.clone())))
}

#[test]
fn output_comes_apart_and_the_exit_after_it() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let rest = client.run("a", &["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((rest.data[1].as_slice(), rest.data[2].as_slice()), (b"out\n".as_slice(), b"err\n".as_slice()));
    assert_eq!(rest.ends.len(), 2);
    assert_eq!((rest.field("code"), rest.field("signal"), rest.field("reason")), (3.into(), Value::Nil, "exited".into()));
    assert_eq!((rest.field("stdoutBytes"), rest.field("stderrBytes")), (4.into(), 4.into()));
}

#[test]
fn what_cannot_run_is_told_by_its_errno() {
    let agent = Agent::start();
    let mut client = agent.accept();
    for (argv, cwd, user, code, errno) in [
        (vec!["/nonexistent"], None, None, "not_found", Some("ENOENT")),
        (vec!["no-such-program-anywhere"], None, None, "not_found", Some("ENOENT")),
        (vec!["/etc/passwd"], None, None, "permission_denied", Some("EACCES")),
        (vec!["/etc/passwd/x"], None, None, "not_found", Some("ENOENT")),
        (vec!["true"], Some("/nonexistent"), None, "invalid_argument", Some("ENOENT")),
        (vec!["true"], None, Some("no-such-user"), "invalid_argument", None),
        (vec![], None, None, "invalid_argument", None),
    ] {
        let params = start("x", &argv).with("cwd", cwd.map(Value::from)).with("user", user.map(Value::from));
        let error = client.call("process.start", params).expect_err("it cannot run");
        assert_eq!(text(&error, "code"), code, "{error:?}");
        assert_eq!(error.get("errno"), errno.map(Value::from).as_ref(), "{error:?}");
    }
    // A failed start leaves no process of that id: the next one is a new one.
    assert_eq!(client.run("x", &["true"]).field("code"), 0.into());
}

#[test]
fn a_repeated_start_runs_the_program_once() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let file = agent.path("runs");
    let params = shell("once", &format!("echo run >> {file}; echo hello"));
    let streams: Vec<u32> = (0..5).map(|_| client.open("process.start", params.clone())).collect();
    let mut existing = 0;
    for stream in streams {
        let reply = client.reply(stream).expect("it starts");
        existing += u32::from(reply.get("existing") == Some(&true.into()));
        assert_eq!(client.rest(stream).stdout(), "hello\n");
    }
    assert_eq!(existing, 4);
    assert_eq!(std::fs::read_to_string(file).expect("the file"), "run\n");
}

#[test]
fn a_terminal_has_its_size_and_takes_input_and_signals() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let pty = Value::map([("cols", 101.into()), ("rows", 33.into()), ("term", "vt100".into())]);
    let params = with(
        shell(
            "tty",
            "stty size; echo $TERM; tty < /dev/tty > /dev/null && echo control; read line; echo got $line; stty size; cat",
        ),
        &[("pty", pty)],
    );
    let params = Value::Map(match params {
        Value::Map(entries) => entries.into_iter().map(|(k, v)| if k == "stdin" { (k, "pipe".into()) } else { (k, v) }).collect(),
        _ => unreachable!(),
    });
    let stream = client.open("process.start", params);
    client.reply(stream).expect("it starts");
    let mut seen = String::new();
    let mut see = |client: &mut Client, what: &str| {
        while !seen.contains(what) {
            let frame = client.next_of(stream);
            assert_eq!((frame.kind, frame.flag), (DATA, 1), "{frame:?} after {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&frame.payload));
        }
    };
    see(&mut client, "33 101\r\nvt100\r\ncontrol\r\n");
    let resize = Value::map([("id", "tty".into()), ("cols", 50.into()), ("rows", 20.into())]);
    client.call("process.resize", resize).expect("resized");
    client.send(DATA, stream, b"me\n");
    see(&mut client, "got me\r\n20 50\r\n");
    client.send(END, stream, b"");
    let rest = client.rest(stream);
    assert_eq!((rest.field("code"), rest.ends), (0.into(), vec![1]));
}

#[test]
fn input_of_any_size_arrives_and_its_end_closes_it() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let params = with(start("sum", &["sh", "-c", "sleep 0.2; wc -c; sleep 0.1"]), &[]);
    let params = replace(params, "stdin", "pipe".into());
    let stream = client.open("process.start", params);
    // Before the reply is there: the first bytes wait for the program.
    let mut window = 262_144usize;
    let total = 3_000_000usize;
    let mut sent = 0;
    while sent < total {
        let count = 60_000.min(total - sent).min(window);
        if count > 0 {
            client.send(DATA, stream, &vec![b'x'; count]);
            (sent, window) = (sent + count, window - count);
            continue;
        }
        let frame = client.next_of(stream);
        match frame.kind {
            CREDIT => window += u32::from_le_bytes(frame.payload.try_into().expect("four bytes")) as usize,
            REPLY => {}
            other => panic!("a frame of type {other}"),
        }
    }
    client.send(END, stream, b"");
    let rest = loop {
        let frame = client.next_of(stream);
        if frame.kind == DATA {
            break frame.payload;
        }
    };
    assert_eq!(String::from_utf8_lossy(&rest).trim(), "3000000");
    assert_eq!(client.rest(stream).field("code"), 0.into());
}

fn replace(params: Value, name: &str, value: Value) -> Value {
    let Value::Map(entries) = params else { panic!("a map") };
    Value::Map(entries.into_iter().map(|(key, old)| if key == name { (key, value.clone()) } else { (key, old) }).collect())
}

#[test]
fn a_program_that_reads_no_input_does_not_hold_up_its_writer() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let stream = client.open("process.start", replace(shell("deaf", "exec <&-; sleep 0.3"), "stdin", "pipe".into()));
    client.reply(stream).expect("it starts");
    for _ in 0..4 {
        client.send(DATA, stream, &[0; 60_000]);
    }
    let rest = client.rest(stream);
    assert_eq!(rest.field("code"), 0.into());
}

#[test]
fn the_newest_input_stream_wins() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let first = client.open("process.start", replace(start("cat", &["cat"]), "stdin", "pipe".into()));
    client.reply(first).expect("it starts");
    client.send(DATA, first, b"one ");
    assert_eq!(client.next_of(first).payload, b"one ");
    let attach = Value::map([("id", "cat".into()), ("stdoutOffset", 0.into()), ("input", true.into())]);
    let second = client.open("process.attach", attach);
    let reply = client.reply(second).expect("attached");
    assert_eq!((number(&reply, "inputOffset"), number(&reply, "stdoutOffset")), (4, 0));
    assert_eq!(text(&client.next_of(first).message(), "e"), "inputTaken");
    client.send(DATA, first, b"lost ");
    client.send(DATA, second, b"two");
    client.send(END, second, b"");
    assert_eq!(client.rest(second).stdout(), "one two");
    assert_eq!(client.rest(first).stdout(), "two");
}

#[test]
fn signals_reach_the_whole_group() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let stream = client.open("process.start", shell("group", "sleep 1000 & echo $!; wait"));
    client.reply(stream).expect("it starts");
    let child = String::from_utf8(client.next_of(stream).payload).expect("a pid").trim().to_owned();
    client.call("process.signal", Value::map([("id", "group".into()), ("signal", "KILL".into())])).expect("signalled");
    let rest = client.rest(stream);
    assert_eq!((rest.field("code"), rest.field("signal"), rest.field("reason")), (Value::Nil, "KILL".into(), "signalled".into()));
    eventually("the child's end", || (!exists(&format!("/proc/{child}/stat"))).then_some(()));
    let again = client.call("process.signal", Value::map([("id", "group".into()), ("signal", 15.into())]));
    assert_eq!(text(&again.expect_err("it is over"), "code"), "failed_precondition");
    let nobody = client.call("process.signal", Value::map([("id", "nobody".into()), ("signal", 15.into())]));
    assert_eq!(text(&nobody.expect_err("there is none"), "code"), "not_found");
}

#[test]
fn a_lifetime_ends_a_process() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let stream = client.open("process.start", with(start("short", &["sleep", "1000"]), &[("lifetimeMs", 50.into())]));
    client.reply(stream).expect("it starts");
    let rest = client.rest(stream);
    assert_eq!((rest.field("signal"), rest.field("reason")), ("KILL".into(), "lifetime".into()));
}

#[test]
fn what_is_left_behind_does_not_hold_up_the_exit_nor_is_it_killed() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let file = agent.path("late");
    let script = format!("(sleep 1; echo late; echo still alive > {file}) & echo early");
    let began = Instant::now();
    let rest = client.run("parent", &["sh", "-c", &script]);
    assert_eq!((rest.stdout().as_str(), rest.field("code")), ("early\n", 0.into()));
    assert!(began.elapsed() < Duration::from_millis(950), "the exit waited for the child");
    eventually("the child to go on", || exists(&file).then_some(()));
}

#[test]
fn a_flood_that_nobody_reads_stops_its_program_only() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let flood = client.open("process.start", start("flood", &["cat", "/dev/zero"]));
    client.reply(flood).expect("it starts");
    // No credit is granted: after the first 256 KiB nothing comes any more, and all else goes on.
    for turn in 0..20 {
        assert_eq!(client.run(&format!("beside{turn}"), &["echo", "fine"]).stdout(), "fine\n");
    }
    let before = number(&listed(&mut client, "flood").expect("it runs"), "pid");
    let reads = || std::fs::read_to_string(format!("/proc/{before}/io")).unwrap_or_default();
    let counted = eventually("the program to stand still", || {
        let first = reads();
        std::thread::sleep(Duration::from_millis(50));
        (first == reads()).then_some(first)
    });
    assert_eq!(counted, reads());
    let rss = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("status");
    let rss: u64 = rss.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse().ok()).expect("RSS");
    assert!(rss < 16 * 1024, "{rss} KiB");
    client.send(CANCEL, flood, b"");
    let close = eventually("the close", || Some(client.next_of(flood)).filter(|frame| frame.kind == CLOSE));
    assert_eq!((close.flag, text(&close.message(), "code")), (1, "cancelled".to_owned()));
    // Giving the stream up does not kill; without a reader the ring is overwritten and the program goes on.
    eventually("the program to go on", || (reads() != counted).then_some(()));
    assert_eq!(listed(&mut client, "flood").and_then(|process| process.get("running").cloned()), Some(true.into()));
}

fn listed(client: &mut Client, id: &str) -> Option<Value> {
    let list = client.call("process.list", Value::Nil).expect("a list");
    let Some(Value::Array(items)) = list.get("processes") else { panic!("no list in {list:?}") };
    items.iter().find(|item| item.get("id") == Some(&id.into())).cloned()
}

#[test]
fn a_reader_that_drops_is_told_what_it_missed() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let total = 8_000_000u64;
    let params = replace(start("drop", &["head", "-c", &total.to_string(), "/dev/zero"]), "whenUnread", "drop".into());
    let stream = client.open("process.start", params);
    client.reply(stream).expect("it starts");
    let exit = client.open("process.wait", Value::map([("id", "drop".into())]));
    client.reply(exit).expect("waits");
    assert_eq!(client.rest(exit).field("stdoutBytes"), total.into());
    client.credit(stream, 10_000_000);
    let rest = client.rest(stream);
    let lost: u64 = rest.events.iter().map(|event| number(event, "bytes")).sum();
    assert!(lost > 0);
    assert_eq!(rest.data[1].len() as u64 + lost, total);
}

#[test]
fn output_is_resumed_by_offset_after_the_connection_is_lost() {
    let agent = Agent::start();
    let mut client = agent.accept();
    // 6 MB of numbered lines: far more than any ring holds.
    let stream = client.open("process.start", shell("lines", "i=0; while [ $i -lt 60000 ]; do echo line-$i-................................................................................; i=$((i+1)); done"));
    client.reply(stream).expect("it starts");
    let mut got = Vec::new();
    let mut nonce = 7u64;
    loop {
        let from = got.len();
        let mut taken = 0;
        let mut current = stream;
        if nonce > 7 {
            let attach = Value::map([("id", "lines".into()), ("stdoutOffset", from.into()), ("stderrOffset", 0.into())]);
            current = client.open("process.attach", attach);
            let reply = client.reply(current).expect("attached");
            assert_eq!(number(&reply, "stdoutOffset"), from as u64, "nothing is missed");
        }
        let over = loop {
            let frame = client.next_of(current);
            match frame.kind {
                DATA => {
                    got.extend_from_slice(&frame.payload);
                    taken += frame.payload.len();
                    if taken > 700_000 {
                        break false;
                    }
                    client.credit(current, frame.payload.len());
                }
                CLOSE => break true,
                END => {}
                other => panic!("a frame of type {other}"),
            }
        };
        if over {
            break;
        }
        nonce += 1;
        client.reconnect((nonce << 32 | nonce).to_le_bytes());
    }
    let text = String::from_utf8(got).expect("text");
    assert_eq!(text.lines().count(), 60_000);
    assert!(text.lines().enumerate().all(|(n, line)| line.starts_with(&format!("line-{n}-."))));
    assert!(nonce > 10, "it was cut {} times", nonce - 7);
}

#[test]
fn users_have_their_groups_and_the_environment_its_order() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let env = |pairs: &[(&str, &str)]| Value::Map(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect());
    let configuration = Value::map([
        ("generation", "g1".into()),
        ("hostname", "box".into()),
        ("entropy", Value::Bin(vec![7; 64])),
        ("env", env(&[("A", "sandbox"), ("B", "sandbox")])),
        ("secrets", env(&[("B", "secret")])),
        ("workdir", "/usr".into()),
    ]);
    client.call("configure", configuration.clone()).expect("configured");
    assert_eq!(text(&client.call("hello", Value::Nil).expect("hello"), "generation"), "g1");
    client.call("configure", configuration).expect("the same generation answers again");
    let stream = client.open("process.start", with(shell("env", "echo $A $B $C $PWD"), &[("env", env(&[("C", "call")]))]));
    client.reply(stream).expect("it starts");
    assert_eq!(client.rest(stream).stdout(), "sandbox secret call /usr\n");
    // Nothing gives secrets back.
    for method in ["hello", "process.list", "metrics"] {
        let answer = format!("{:?}", client.call(method, Value::Nil).expect(method));
        assert!(!answer.contains("secret"), "{method}: {answer}");
    }
    let login = with(start("login", &["echo", "two words", "$HOME"]), &[("loginShell", true.into()), ("cwd", "~".into())]);
    let stream = client.open("process.start", login);
    client.reply(stream).expect("it starts");
    assert_eq!(client.rest(stream).stdout(), "two words $HOME\n");
    if rustix::process::getuid().is_root() {
        let stream = client.open(
            "process.start",
            with(shell("id", "id -u; id -g; pwd"), &[("user", "daemon:bin".into()), ("cwd", "/tmp".into())]),
        );
        client.reply(stream).expect("it starts");
        assert_eq!(client.rest(stream).stdout(), "1\n2\n/tmp\n");
    }
}

#[test]
fn processes_and_files_begin_in_the_same_directory() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let pwd = |client: &mut Client, id: &str, more: &[(&str, Value)]| {
        let stream = client.open("process.start", with(start(id, &["pwd"]), more));
        client.reply(stream).map(|_| client.rest(stream).stdout().to_owned())
    };
    // Without a directory of the sandbox's: the user's home, and `/` for who has none.
    let home = std::env::temp_dir().join(format!("hutch-begin-{}", std::process::id()));
    std::fs::create_dir_all(home.join("sub")).expect("made");
    let configure = |generation: &str, workdir: &str| {
        Value::map([
            ("generation", generation.into()),
            ("hostname", "box".into()),
            ("entropy", Value::Bin(vec![7; 64])),
            ("workdir", workdir.into()),
        ])
    };
    let passwd_home = pwd(&mut client, "home", &[("cwd", "~".into())]).expect("it starts");
    assert_eq!(pwd(&mut client, "default", &[]).expect("it starts"), passwd_home);
    if rustix::process::getuid().is_root() {
        assert_eq!(pwd(&mut client, "nobody", &[("user", "nobody".into())]).expect("it starts"), "/\n");
    }
    let made = home.join("not/there/yet");
    client.call("configure", configure("g1", made.to_str().expect("text"))).expect("configured");
    assert_eq!(pwd(&mut client, "made", &[]).expect("it starts"), format!("{}\n", made.display()));
    client.call("configure", configure("g2", home.to_str().expect("text"))).expect("configured");
    assert_eq!(pwd(&mut client, "relative", &[("cwd", "sub".into())]).expect("it starts"), format!("{}/sub\n", home.display()));
    let entry = client.call("file.stat", Value::map([("path", "sub".into())])).expect("it is there");
    assert_eq!(text(&entry, "path"), format!("{}/sub", home.display()));
    let refused = pwd(&mut client, "absent", &[("cwd", "absent".into())]).expect_err("no such directory");
    assert!(format!("{refused:?}").contains(&format!("working directory {}/absent: ", home.display())), "{refused:?}");
    std::fs::remove_dir_all(&home).expect("removed");
}

#[test]
fn orphans_are_reaped_and_many_programs_in_a_row_leave_nothing() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("fds").count();
    client.run("first", &["true"]);
    let before = descriptors();
    for n in 0..300 {
        assert_eq!(client.run(&format!("p{n}"), &["true"]).field("code"), 0.into());
    }
    client.run("orphan", &["sh", "-c", "(sleep 0.05 &) ; (true &)"]);
    eventually("all children to be reaped", || {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", agent.pid())).unwrap_or_default();
        children.trim().is_empty().then_some(())
    });
    eventually("descriptors to be closed", || (descriptors() <= before).then_some(()));
    // The last 256 ended ones are kept.
    assert!(listed(&mut client, "p299").is_some());
    assert!(listed(&mut client, "p0").is_none());
}

#[test]
fn programs_start_with_nothing_of_the_agents_own() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let rest = client
        .run("bare", &["sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd; grep policy /proc/self/sched"]);
    let lines: Vec<String> = rest.stdout().split_whitespace().map(str::to_owned).collect();
    let ignored = u64::from_str_radix(&lines[3], 16).expect("a set of signals");
    assert_eq!((lines[1].as_str(), ignored & (1 << 12)), ("0000000000000000", 0), "nothing is blocked, and SIGPIPE kills");
    // Three descriptors and the one of ls, and the usual scheduling.
    assert_eq!(lines[4..], ["0", "1", "2", "3", "policy", ":", "0"]);
}

#[test]
fn the_end_of_main_is_told_also_to_those_who_ask_later() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let early = client.open("watchEvents", Value::Nil);
    client.reply(early).expect("watching");
    client.run("main", &["sh", "-c", "exit 7"]);
    let late = client.open("watchEvents", Value::Nil);
    client.reply(late).expect("watching");
    for stream in [early, late] {
        let event = client.next_of(stream).message();
        assert_eq!((text(&event, "e"), number(&event, "code")), ("mainExited".to_owned(), 7));
    }
}

#[test]
fn shutdown_ends_everything_and_then_the_agent() {
    let mut agent = Agent::start();
    let mut client = agent.accept();
    let stream = client.open("process.start", shell("stubborn", "trap '' TERM; echo ready; while :; do sleep 0.1; done"));
    client.reply(stream).expect("it starts");
    assert_eq!(client.next_of(stream).payload, b"ready\n");
    client.call("shutdown", Value::map([("graceMs", 100.into())])).expect("it begins");
    let rest = client.rest(stream);
    assert_eq!(rest.field("signal"), "KILL".into());
    assert_eq!(agent.wait(), Some(0));
}

/// Channel and content of each record.
fn records(mut bytes: &[u8]) -> Vec<(u8, String)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let length = u32::from_le_bytes(bytes[9..13].try_into().expect("four bytes")) as usize;
        found.push((bytes[0], String::from_utf8_lossy(&bytes[13..13 + length]).into_owned()));
        bytes = &bytes[13 + length..];
    }
    found
}

#[test]
fn the_log_of_main_is_kept_followed_and_read_from_any_offset() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let stream = client.open(
        "process.start",
        replace(start("main", &["sh", "-c", "echo one; read x; echo two >&2; read x; echo three"]), "stdin", "pipe".into()),
    );
    client.reply(stream).expect("it starts");
    assert_eq!(client.next_of(stream).payload, b"one\n");
    let log = |follow: bool| Value::map([("id", "main".into()), ("follow", follow.into())]);
    let follower = client.open("process.log", log(true));
    client.reply(follower).expect("follows");
    assert_eq!(records(&client.next_of(follower).payload), [(1, "one\n".to_owned())]);
    client.send(DATA, stream, b"\n");
    assert_eq!(records(&client.next_of(follower).payload), [(2, "two\n".to_owned())]);
    client.send(DATA, stream, b"\n");
    assert_eq!(records(&client.rest(follower).data[1]), [(1, "three\n".to_owned())]);
    // Once more, after the end: whole, the last record alone, and from an offset.
    let read = |client: &mut Client, params: Value| {
        let stream = client.open("process.log", params);
        let offset = number(&client.reply(stream).expect("reads"), "offset");
        (offset, records(&client.rest(stream).data[1]).len())
    };
    assert_eq!(read(&mut client, log(true)), (0, 3));
    assert_eq!(read(&mut client, log(false).with("tailBytes", Some(20.into()))), (34, 1));
    assert_eq!(read(&mut client, log(false).with("offset", Some(17.into()))), (17, 2));
    assert!(client.call("process.log", Value::map([("id", "other".into()), ("follow", false.into())])).is_err());
}
