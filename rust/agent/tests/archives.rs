//! Archives that go in and out, as a host sees them.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod support;
use hutch_agent::tar::header::{Header, Kind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use support::*;

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
