//! Files, archives and watches, as a host sees them.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod support;
use hutch_agent::tar::header::{Header, Kind};
use hutch_agent::wire::value::Value;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use support::*;

fn at(path: &str) -> Value {
    Value::map([("path", path.into())])
}

fn upload(client: &mut Client, method: &str, params: Value, content: &[u8]) -> Result<Value, Value> {
    let stream = client.open(method, params);
    let mut window = 262_144usize;
    let mut rest = content;
    while !rest.is_empty() {
        let count = rest.len().min(60_000).min(window);
        if count > 0 {
            client.send(DATA, stream, &rest[..count]);
            rest = &rest[count..];
            window -= count;
            continue;
        }
        let frame = client.next_of(stream);
        match frame.kind {
            CREDIT => window += u32::from_le_bytes(frame.payload.try_into().expect("four bytes")) as usize,
            REPLY if frame.flag == 0 => {}
            _ => return Err(frame.message()),
        }
    }
    client.send(END, stream, b"");
    loop {
        let frame = client.next_of(stream);
        match frame.kind {
            CREDIT => {}
            REPLY if frame.flag == 0 => {}
            CLOSE if frame.flag == 0 => return Ok(frame.message()),
            _ => return Err(frame.message()),
        }
    }
}

fn download(client: &mut Client, method: &str, params: Value) -> Result<(Vec<u8>, Value), Value> {
    let stream = client.open(method, params);
    client.reply(stream)?;
    let rest = client.rest(stream);
    let [content, ..] = rest.data;
    rest.close.map(|close| (content, close))
}

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
fn a_tree_goes_out_as_an_archive_and_comes_back_the_same() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let tree = agent.path("tree");
    std::fs::create_dir_all(format!("{tree}/dir/{}", "long-".repeat(30))).expect("makes");
    std::fs::write(format!("{tree}/dir/{}/file", "long-".repeat(30)), vec![9; 700_001]).expect("writes");
    std::fs::write(format!("{tree}/empty"), "").expect("writes");
    std::fs::set_permissions(format!("{tree}/empty"), std::fs::Permissions::from_mode(0o4755)).expect("mode");
    std::fs::hard_link(format!("{tree}/empty"), format!("{tree}/hard")).expect("links");
    symlink("../nowhere", format!("{tree}/soft")).expect("links");
    let (archive, close) = download(&mut client, "tar.pack", at(&tree)).expect("packed");
    assert_eq!((number(&close, "bytes"), number(&close, "entries")), (archive.len() as u64, 7));
    let copy = agent.path("copy");
    let done = upload(&mut client, "tar.unpack", at(&copy).with("mkdirs", Some(true.into())), &archive).expect("unpacked");
    assert_eq!(number(&done, "entries"), 7);
    let listing = |top: &str| {
        let find = std::process::Command::new("find").current_dir(top).args([".", "-printf", "%p %m %s %l %n\n"]).output();
        let mut lines: Vec<String> = String::from_utf8(find.expect("finds").stdout)
            .expect("text")
            .lines()
            .filter(|line| !line.contains(" 4096 "))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(listing(&tree), listing(&copy));
    let mtime = |path: String| std::fs::symlink_metadata(path).expect("there").mtime();
    assert_eq!(mtime(format!("{tree}/dir")), mtime(format!("{copy}/dir")));
    // A tar of somebody else's reads it too.
    std::fs::write(agent.path("a.tar"), &archive).expect("writes");
    let listed = std::process::Command::new("tar").args(["tf", &agent.path("a.tar")]).output().expect("tar runs");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    // And what GNU tar makes is read here, long names and all.
    let gnu =
        std::process::Command::new("tar").args(["--format=gnu", "-cf", "-", "-C", &tree, "."]).output().expect("tar runs").stdout;
    let third = agent.path("third");
    upload(&mut client, "tar.unpack", at(&third).with("mkdirs", Some(true.into())), &gnu).expect("unpacked");
    assert_eq!(listing(&tree), listing(&third));
}

#[test]
fn files_with_holes_come_in_with_their_holes_however_tar_writes_them() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let name = format!("{}file with holes", "long-".repeat(30));
    let path = agent.path(&name);
    let mut content = vec![0; 8 << 20];
    // So many pieces that a map of the header's own does not hold them; the file ends in a hole.
    for piece in 0..60usize {
        let from = piece * 131_072 + 4096;
        content[from..from + 4096 + piece].fill(1 + piece as u8);
    }
    std::fs::write(&path, &content).expect("writes");
    let dug = std::process::Command::new("fallocate").args(["--dig-holes", &path]).status();
    assert!(dug.expect("fallocate runs").success());
    for format in [
        &["--format=gnu"] as &[&str],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let tar = std::process::Command::new("tar").args(["-cSf", "-", "-C", &agent.path("")]).args(format).arg(&name).output();
        let archive = tar.expect("tar runs").stdout;
        assert!(archive.len() < content.len() / 4, "{format:?} has holes");
        let target = agent.path("target");
        upload(&mut client, "tar.unpack", at(&target).with("mkdirs", Some(true.into())), &archive).expect("unpacked");
        let copy = format!("{target}/{name}");
        assert!(std::fs::read(&copy).expect("reads") == content, "{format:?}");
        assert!(std::fs::metadata(&copy).expect("there").blocks() * 512 < content.len() as u64 / 2, "{format:?}");
        // Cut anywhere, it is refused, and what was there before stays.
        for end in [512, 1024, 1536, 2048, 4096] {
            upload(&mut client, "tar.unpack", at(&target), &archive[..end]).expect_err("it is cut off");
            assert!(std::fs::read(&copy).expect("reads") == content, "{format:?} cut at {end}");
            assert_eq!(std::fs::read_dir(&target).expect("lists").count(), 1, "{format:?} cut at {end}");
        }
        std::fs::remove_dir_all(&target).expect("removes");
    }
}

#[test]
fn files_that_the_kernel_makes_go_out_whole_and_times_to_the_nanosecond() {
    let agent = Agent::start();
    let mut client = agent.accept();
    for path in ["/proc/sys/kernel/ostype", "/proc/self/limits", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        if !exists(path) {
            continue;
        }
        let (archive, _) = download(&mut client, "tar.pack", at(path)).expect("packed");
        let target = agent.path("made");
        upload(&mut client, "tar.unpack", at(&target).with("mkdirs", Some(true.into())), &archive).expect("unpacked");
        let copy = std::fs::read(format!("{target}/{}", path.rsplit('/').next().expect("a name"))).expect("reads");
        assert!(!copy.is_empty() && !copy.contains(&0), "{path}");
        if !path.contains("/self/") {
            assert_eq!(copy, std::fs::read(path).expect("reads"));
        }
    }
    let path = agent.path("timed");
    std::fs::write(&path, "x").expect("writes");
    for time in ["2001-02-03 04:05:06.123456789", "1969-12-31 23:59:58.250000001"] {
        let touched = std::process::Command::new("touch").env("TZ", "UTC").args(["-m", "-d", time, &path]).status();
        assert!(touched.expect("touch runs").success());
        let (archive, _) = download(&mut client, "tar.pack", at(&path)).expect("packed");
        let target = agent.path("copied");
        upload(&mut client, "tar.unpack", at(&target).with("mkdirs", Some(true.into())), &archive).expect("unpacked");
        let of = |path: &str| std::fs::metadata(path).map(|stat| (stat.mtime(), stat.mtime_nsec())).expect("there");
        assert_eq!(of(&format!("{target}/timed")), of(&path), "{time}");
    }
}

fn header(path: &[u8], kind: Kind, link: &[u8], size: u64) -> Vec<u8> {
    let header = Header {
        kind,
        path: path.to_vec(),
        link: link.to_vec(),
        size,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        device: (0, 0),
        sparse: None,
    };
    header.encode()
}

fn file(path: &[u8], content: &[u8]) -> Vec<u8> {
    let mut bytes = header(path, Kind::File, b"", content.len() as u64);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn nothing_of_an_archive_lands_outside_of_its_target() {
    let agent = Agent::start();
    let mut client = agent.accept();
    let outside = agent.path("outside");
    std::fs::create_dir_all(&outside).expect("makes");
    std::fs::write(format!("{outside}/victim"), "safe").expect("writes");
    let absolute = outside.as_bytes();
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        ("dot dot", file(b"../outside/evil", b"x")),
        ("dot dot within", file(b"a/../../outside/evil", b"x")),
        ("an absolute name", file(&[absolute, b"/evil"].concat(), b"x")),
        ("a link and a file through it", [header(b"l", Kind::Symlink, b"../outside", 0), file(b"l/evil", b"x")].concat()),
        ("an absolute link and a file through it", [header(b"l", Kind::Symlink, absolute, 0), file(b"l/evil", b"x")].concat()),
        ("a link as a file", [header(b"l", Kind::Symlink, b"../outside/evil", 0), file(b"l", b"x")].concat()),
        (
            "a link as a directory",
            [header(b"l", Kind::Symlink, b"../outside", 0), header(b"l/", Kind::Directory, b"", 0), file(b"l/evil", b"x")]
                .concat(),
        ),
        (
            "a chain of links",
            [header(b"a", Kind::Symlink, b"b", 0), header(b"b", Kind::Symlink, b"..", 0), file(b"a/outside/evil", b"x")].concat(),
        ),
        ("a hard link to the outside", [header(b"h", Kind::HardLink, b"../outside/victim", 0), file(b"h", b"x")].concat()),
        ("a hard link by an absolute name", header(b"h", Kind::HardLink, &[absolute, b"/victim"].concat(), 0)),
        (
            "a hard link through a link",
            [header(b"l", Kind::Symlink, b"../outside", 0), header(b"h", Kind::HardLink, b"l/victim", 0)].concat(),
        ),
        ("a size of nearly 2^63", header(b"big", Kind::File, b"", (1 << 62) + 1)),
    ];
    for (name, mut archive) in attacks {
        archive.resize(archive.len() + 1024, 0);
        let target = agent.path("target");
        let _ = std::fs::remove_dir_all(&target);
        std::fs::create_dir_all(&target).expect("makes");
        // Refused or harmless; both are well, but nothing may be outside.
        let outcome = upload(&mut client, "tar.unpack", at(&target), &archive);
        assert!(!exists(&format!("{outside}/evil")), "{name}: {outcome:?}");
        let victim = std::fs::metadata(format!("{outside}/victim")).expect("the victim");
        assert_eq!((victim.nlink(), victim.len()), (1, 4), "{name}");
        assert_eq!(std::fs::read_dir(&outside).expect("lists").count(), 1, "{name}");
    }
    for (name, archive) in [("rubbish", vec![7; 2048]), ("cut", file(b"f", &[1; 5000])[..3000].to_vec())] {
        let refused = upload(&mut client, "tar.unpack", at(&agent.path("target")), &archive).expect_err(name);
        assert_eq!(text(&refused, "code"), "invalid_argument", "{name}");
    }
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
