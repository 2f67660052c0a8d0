//! Files and watches, as a host sees them.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod support;
use hutch_agent::wire::value::Value;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use support::*;

#[test]
fn a_file_goes_in_whole_and_comes_out_in_parts() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let path = agent.path("deep/er/file");
    let content: Vec<u8> = (0..1_000_000u32).map(|n| (n % 253) as u8).collect();
    let params = Value::map([
        ("path", path.as_str().into()),
        ("mode", 0o640.into()),
        ("mtimeMs", 1_700_000_000_500u64.into()),
        ("mkdirs", true.into()),
    ]);
    let entry = upload(&mut client, "file.write", params, &content).expect("written");
    assert_eq!(
        (number(&entry, "size"), number(&entry, "mode"), number(&entry, "mtimeMs")),
        (1_000_000, 0o640, 1_700_000_000_500)
    );
    assert_eq!(std::fs::read(&path).expect("reads"), content);
    assert_eq!(std::fs::read_dir(agent.path("deep/er")).expect("lists").count(), 1, "no temporary file is left");
    let (all, close) = download(&mut client, "file.read", at(&path)).expect("read");
    assert_eq!((all, number(&close, "bytes")), (content, 1_000_000));
    let part = at(&path).with("offset", Some(253.into())).with("length", Some(5.into()));
    assert_eq!(download(&mut client, "file.read", part).expect("read").0, [0, 1, 2, 3, 4]);
    let patch = Value::map([("path", path.as_str().into()), ("at", 1.into())]);
    upload(&mut client, "file.write", patch, b"XY").expect("written");
    assert_eq!(std::fs::read(&path).expect("reads")[..4], [0, b'X', b'Y', 3]);
}

/// In the build's own folder: most file systems for temporary files have no disk to go to directly.
#[test]
fn a_large_file_comes_out_as_it_went_in_whatever_its_length() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let on_disk = format!("{}/large-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    const MIB: usize = 1024 * 1024;
    for path in [on_disk, "/dev/shm/hutch-large".to_string() + &std::process::id().to_string(), agent.path("large")] {
        for length in [4 * MIB, 5 * MIB, 7 * MIB - 1] {
            let content: Vec<u8> = (0..length as u32).map(|n| (n % 253) as u8).collect();
            let entry = upload(&mut client, "file.write", at(&path), &content).expect("written");
            assert_eq!(number(&entry, "size"), length as u64, "{path}");
            assert!(std::fs::read(&path).expect("reads") == content, "{path}: {length} bytes differ");
        }
        std::fs::remove_file(&path).expect("removes");
    }
}

/// In the build's own folder, for the same reason: only there it is read past the cache.
#[test]
fn a_large_file_that_is_not_cached_is_read_whole_and_leaves_the_cache_alone() {
    const MIB: usize = 1024 * 1024;
    let agent = Agent::start();
    let mut client = agent.accept();
    let path = format!("{}/uncached-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let content: Vec<u8> = (0..7 * MIB as u32 + 5).map(|n| (n % 253) as u8).collect();
    std::fs::write(&path, &content).expect("writes");
    let file = std::fs::File::open(&path).expect("opens");
    file.sync_all().expect("reaches the disk");
    let is_cached = |at: usize| hutch_sys::is_cached(file.as_fd(), at as u64, 4096).expect("asks");
    let uncache = || rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("leaves the cache");
    uncache();
    let has_disk = !is_cached(3 * MIB);
    assert!(download(&mut client, "file.read", at(&path)).expect("read").0 == content);
    assert!(!has_disk || !is_cached(3 * MIB), "it was read through the cache");
    // In part: from within a block, and to its middle.
    let part = at(&path).with("offset", Some((MIB + 7).into())).with("length", Some((3 * MIB).into()));
    assert!(download(&mut client, "file.read", part).expect("read").0 == content[MIB + 7..4 * MIB + 7]);
    uncache();
    let part = at(&path).with("offset", Some((2 * MIB).into())).with("length", Some((3 * MIB + 100).into()));
    assert!(download(&mut client, "file.read", part).expect("read").0 == content[2 * MIB..5 * MIB + 100]);
    // What somebody has in the cache is not fetched again, and what is not on the disk yet is not missed.
    std::os::unix::fs::FileExt::write_at(
        &std::fs::File::options().write(true).open(&path).expect("opens"),
        b"new",
        4 * MIB as u64,
    )
    .expect("writes");
    let (all, close) = download(&mut client, "file.read", at(&path)).expect("read");
    assert!(all[4 * MIB..].starts_with(b"new") && all.len() == content.len());
    assert_eq!(number(&close, "bytes"), content.len() as u64);
    // Given up in the middle of a frame, the next one is as good as ever.
    uncache();
    let stream = client.open("file.read", at(&path));
    client.reply(stream).expect("opened");
    client.next_of(stream);
    client.send(CANCEL, stream, b"");
    while client.next_of(stream).kind != CLOSE {}
    assert_eq!(number(&client.call("file.stat", at(&path)).expect("there"), "size"), content.len() as u64);
    std::fs::remove_file(&path).expect("removes");
}

#[test]
fn a_write_that_is_given_up_leaves_the_old_file() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let path = agent.path("file");
    std::fs::write(&path, "old").expect("writes");
    let stream = client.open("file.write", at(&path));
    client.send(DATA, stream, b"new");
    client.reply(stream).expect("opened");
    client.send(CANCEL, stream, b"");
    let frame = client.next_of(stream);
    assert_eq!((frame.kind, frame.flag), (CLOSE, 1));
    eventually("the temporary file to go", || (std::fs::read_dir(&agent.dir).expect("lists").count() == 2).then_some(()));
    assert_eq!(std::fs::read_to_string(&path).expect("reads"), "old");
    // Through a link the file behind it is replaced, the link stays.
    symlink("file", agent.path("link")).expect("links");
    upload(&mut client, "file.write", at(&agent.path("link")), b"newer").expect("written");
    assert_eq!(std::fs::read_to_string(&path).expect("reads"), "newer");
    assert!(std::fs::symlink_metadata(agent.path("link")).expect("a link").is_symlink());
}

#[test]
fn small_changes_answer_with_the_entry() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let (file, dir) = (agent.path("f"), agent.path("a/b/c"));
    std::fs::write(&file, "12345").expect("writes");
    let mut call = |method: &str, params: Value| client.call(method, params);
    let made = call("file.mkdir", at(&dir).with("mode", Some(0o750.into())).with("parents", Some(true.into()))).expect("made");
    assert_eq!((text(&made, "type"), number(&made, "mode")), ("dir".to_owned(), 0o750));
    assert_eq!(text(&call("file.mkdir", at(&dir)).expect_err("it is there"), "code"), "conflict");
    assert_eq!(number(&call("file.chmod", at(&file).with("mode", Some(0o4711.into()))).expect("changed"), "mode"), 0o4711);
    assert_eq!(number(&call("file.truncate", at(&file).with("size", Some(2.into()))).expect("cut"), "size"), 2);
    let link = agent.path("l");
    let entry = call("file.symlink", at(&link).with("target", Some("f".into()))).expect("linked");
    assert_eq!((text(&entry, "type"), text(&entry, "target")), ("symlink".to_owned(), "f".to_owned()));
    assert_eq!(text(&call("file.stat", at(&link)).expect("follows"), "type"), "file");
    let hard = call("file.link", at(&agent.path("h")).with("target", Some(file.as_str().into()))).expect("linked");
    assert_eq!(number(&hard, "nlink"), 2);
    let moved = Value::map([("from", file.as_str().into()), ("to", agent.path("g").into())]);
    assert_eq!(text(&call("file.rename", moved).expect("renamed"), "name"), "g");
    assert_eq!(text(&call("file.stat", at(&file)).expect_err("it is gone"), "errno"), "ENOENT");
    assert_eq!(text(&call("file.remove", at(&agent.path("a"))).expect_err("it is full"), "code"), "conflict");
    call("file.remove", at(&agent.path("a")).with("recursive", Some(true.into()))).expect("removed");
    assert!(!exists(&agent.path("a")));
    for wrong in [at(""), at("a\0b"), Value::Nil, at(&"x/".repeat(3000))] {
        assert_eq!(text(&call("file.stat", wrong).expect_err("refused"), "code"), "invalid_argument");
    }
}

#[test]
fn a_name_may_be_any_bytes() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let names: [&[u8]; 4] = [b"new\nline", b"quo'te\"", b"\xff\xfe", "ümläut".as_bytes()];
    for name in names {
        let path = [agent.dir.as_os_str().as_encoded_bytes(), b"/names/", name].concat();
        let params = Value::map([("path", Value::text(&path)), ("mkdirs", true.into())]);
        upload(&mut client, "file.write", params, name).expect("written");
    }
    let stream = client.open("file.list", at(&agent.path("names")));
    client.reply(stream).expect("lists");
    let rest = client.rest(stream);
    let mut listed: Vec<Vec<u8>> = Vec::new();
    for event in &rest.events {
        let Some(Value::Array(entries)) = event.get("entries") else { panic!("{event:?}") };
        listed.extend(entries.iter().map(|entry| match entry.get("name") {
            Some(Value::Str(name)) => name.clone().into_bytes(),
            Some(Value::Bin(name)) => name.clone(),
            other => panic!("{other:?}"),
        }));
    }
    listed.sort();
    let mut wanted = names.map(<[u8]>::to_vec).to_vec();
    wanted.sort();
    assert_eq!(listed, wanted);
}

#[test]
fn a_directory_of_many_entries_and_a_deep_one_are_listed_and_removed() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let top = agent.path("many");
    std::fs::create_dir_all(format!("{top}/sub/subsub")).expect("makes");
    for n in 0..3000 {
        std::fs::write(format!("{top}/{n:0200}"), "").expect("writes");
    }
    let count = |client: &mut Client, depth: u64| {
        let stream = client.open("file.list", at(&top).with("depth", Some(depth.into())));
        client.reply(stream).expect("lists");
        let rest = client.rest(stream);
        assert!(rest.events.iter().all(|event| event.encode().len() < 65_536));
        rest.events
            .iter()
            .map(|event| match event.get("entries") {
                Some(Value::Array(entries)) => entries.len(),
                other => panic!("{other:?}"),
            })
            .sum::<usize>()
    };
    assert_eq!(count(&mut client, 1), 3001);
    assert_eq!(count(&mut client, 5), 3002);
    // Deeper than any number of descriptors or stack that one would spend on it.
    let status = std::process::Command::new("sh")
        .args(["-c", &format!("cd {top}; i=0; while [ $i -lt 700 ]; do mkdir d && cd d; i=$((i+1)); done; echo x > file")])
        .status();
    assert!(status.expect("runs").success());
    client.call("file.remove", at(&top).with("recursive", Some(true.into()))).expect("removed");
    assert!(!exists(&top));
}

#[test]
fn files_are_reached_as_the_user_who_is_named() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let agent = Agent::start();
    let mut client = agent.accept();
    std::fs::set_permissions(&agent.dir, std::fs::Permissions::from_mode(0o777)).expect("opens");
    let secret = agent.path("secret");
    std::fs::write(&secret, "root's").expect("writes");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("closes");
    let as_daemon = |path: &str| at(path).with("user", Some("daemon".into()));
    let refused = download(&mut client, "file.read", as_daemon(&secret)).expect_err("refused");
    assert_eq!((text(&refused, "code"), text(&refused, "errno")), ("permission_denied".to_owned(), "EACCES".to_owned()));
    let entry = upload(&mut client, "file.write", as_daemon(&agent.path("own")), b"x").expect("written");
    assert_eq!((number(&entry, "uid"), text(&entry, "user")), (1, "daemon".to_owned()));
    // The same threads go on as root afterwards.
    for _ in 0..20 {
        assert_eq!(download(&mut client, "file.read", at(&secret)).expect("read").0, b"root's");
        download(&mut client, "file.read", as_daemon(&secret)).expect_err("refused");
    }
    let owned = client.call("file.chown", at(&agent.path("own")).with("owner", Some("bin:sys".into()))).expect("changed");
    assert_eq!((number(&owned, "uid"), number(&owned, "gid")), (2, 3));
}

#[test]
fn a_watch_tells_what_happens_below() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let top = agent.path("watched");
    std::fs::create_dir_all(format!("{top}/sub")).expect("makes");
    let stream = client.open("file.watch", at(&top).with("recursive", Some(true.into())));
    client.reply(stream).expect("watches");
    let mut seen = Vec::new();
    let mut until = |client: &mut Client, kind: &str, name: &str, to: Option<&str>| loop {
        let event = client.next_of(stream).message();
        let path = text(&event, "path").replacen(&format!("{top}/"), "", 1);
        let target = event.get("to").map(|_| text(&event, "to").replacen(&format!("{top}/"), "", 1));
        let found = text(&event, "kind") == kind && path == name && target.as_deref() == to;
        seen.push(format!("{} {path}", text(&event, "kind")));
        if found {
            return;
        }
        assert!(seen.len() < 50, "{seen:?}");
    };
    std::fs::write(format!("{top}/sub/f"), "x").expect("writes");
    until(&mut client, "create", "sub/f", None);
    until(&mut client, "write", "sub/f", None);
    std::fs::set_permissions(format!("{top}/sub/f"), std::fs::Permissions::from_mode(0o600)).expect("mode");
    until(&mut client, "chmod", "sub/f", None);
    std::fs::rename(format!("{top}/sub"), format!("{top}/moved")).expect("renames");
    until(&mut client, "rename", "sub", Some("moved"));
    std::fs::write(format!("{top}/moved/g"), "x").expect("writes");
    until(&mut client, "create", "moved/g", None);
    std::fs::create_dir_all(format!("{top}/new/er")).expect("makes");
    until(&mut client, "create", "new/er", None);
    std::fs::write(format!("{top}/new/er/h"), "x").expect("writes");
    until(&mut client, "create", "new/er/h", None);
    std::fs::remove_file(format!("{top}/moved/f")).expect("removes");
    until(&mut client, "remove", "moved/f", None);
    std::fs::rename(format!("{top}/moved"), agent.path("away")).expect("renames");
    until(&mut client, "remove", "moved", None);
    client.send(CANCEL, stream, b"");
    let close = loop {
        let frame = client.next_of(stream);
        if frame.kind == CLOSE {
            break frame;
        }
    };
    assert_eq!(text(&close.message(), "code"), "cancelled");
}
