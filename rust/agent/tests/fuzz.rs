//! Random and mutated input for every parser that reads what a host, an image or an archive says. Each
//! run has its own seed, which is printed; `HUTCH_TEST_FUZZ_SEED` repeats one, `HUTCH_TEST_FUZZ_SECONDS` (2) says how long.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
use hutch_agent::fault::Fault;
use hutch_agent::netlink::{parse_address, parse_mac};
use hutch_agent::oom::parse_kill;
use hutch_agent::ports::parse_table;
use hutch_agent::tar::reader::{Reader, Source};
use hutch_agent::tar::unpack::names;
use hutch_agent::users::resolve_in;
use hutch_agent::wire::decoder::{Decoder, Step};
use hutch_agent::wire::fields::Fields;
use hutch_agent::wire::value::{Value, decode};
use std::time::{Duration, Instant};

/// xorshift64*: enough for this, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.next() as u8).collect()
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 if !bytes.is_empty() => bytes[at] = self.next() as u8,
                1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                2 => bytes.truncate(at),
                3 => bytes.insert(at.min(bytes.len()), self.next() as u8),
                4 if !bytes.is_empty() => {
                    let part = bytes[at..(at + 20).min(bytes.len())].to_vec();
                    bytes.splice(at..at, part);
                }
                _ if bytes.len() > 4 => {
                    let word = [0u32, 1, 0xffff, 0x1_0000, 0x1_0001, u32::MAX, 1 << 31][self.below(7)];
                    let at = at.min(bytes.len() - 4);
                    bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
                }
                _ => {}
            }
        }
    }
}

fn run(name: &str, mut target: impl FnMut(&mut Random)) {
    let number = |variable: &str| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    let seed = number("HUTCH_TEST_FUZZ_SEED").unwrap_or(now.as_nanos() as u64) | 1;
    println!("{name}: HUTCH_TEST_FUZZ_SEED={seed}");
    eprintln!("{name}: HUTCH_TEST_FUZZ_SEED={seed}");
    let mut random = Random(seed);
    let deadline = Instant::now() + Duration::from_secs(number("HUTCH_TEST_FUZZ_SECONDS").unwrap_or(2));
    let mut turns = 0u64;
    while Instant::now() < deadline {
        for _ in 0..50 {
            target(&mut random);
        }
        turns += 50;
    }
    println!("{name}: {turns} inputs");
}

fn vectors() -> Vec<Vec<u8>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../test/vectors/agent-protocol.json");
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).expect("the vectors")).expect("JSON");
    let mut found = Vec::new();
    let mut waiting = vec![json];
    while let Some(value) = waiting.pop() {
        match value {
            serde_json::Value::Array(items) => waiting.extend(items),
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    match (key.as_str(), value) {
                        ("bytes" | "payload" | "preamble", serde_json::Value::String(text)) => {
                            found.push(
                                (0..text.len() / 2)
                                    .map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).expect("hex"))
                                    .collect(),
                            );
                        }
                        (_, value) => waiting.push(value),
                    }
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn any_bytes_decode_to_steps_and_every_byte_is_used_up() {
    let vectors = vectors();
    let preamble = b"HUTCH\x01\r\n\xa1\xb2\xc3\xd4\xe5\xf6\x07\x18".to_vec();
    run("decoder", |random| {
        let mut input = if random.below(4) > 0 { preamble.clone() } else { Vec::new() };
        for _ in 0..random.below(6) {
            let mut part = if random.below(3) == 0 { random.bytes(200) } else { vectors[random.below(vectors.len())].clone() };
            if random.below(2) == 0 {
                random.mutate(&mut part);
            }
            input.extend(part);
        }
        let mut decoder = Decoder::default();
        let (mut rest, mut steps, mut connected) = (input.as_slice(), 0, false);
        while !rest.is_empty() {
            let count = (1 + random.below(rest.len())).min(60_000);
            let (now, later) = rest.split_at(count);
            decoder.space()[..count].copy_from_slice(now);
            decoder.filled(count);
            rest = later;
            loop {
                steps += 1;
                assert!(steps < 10 * input.len() + 100, "it goes on for ever");
                match decoder.step() {
                    Step::NeedMore => break,
                    Step::Preamble { nonce } => {
                        assert!(!connected && nonce[..4] != [0; 4]);
                        connected = true;
                    }
                    Step::OtherVersion { version, .. } => assert!(!connected && version != 1),
                    Step::Frame { header, payload } => {
                        assert!(connected && payload.len() == header.length && header.length <= 65_536);
                        if let Ok(request) = decode(payload) {
                            let fields = Fields(&request);
                            let _ = (
                                fields.opt_str("m"),
                                fields.opt_u64("p"),
                                fields.environment("p"),
                                fields.opt_list("p"),
                                fields.path("p"),
                            );
                        }
                    }
                    Step::Broken(_) => {
                        assert!(connected);
                        connected = false;
                    }
                }
            }
            assert!(decoder.space().len() > 60_000, "there is always room to read on");
        }
    });
}

/// Any value within the bounds.
fn any_value(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 7 } else { 9 }) {
        0 => Value::Nil,
        1 => Value::Bool(random.below(2) == 0),
        2 => Value::Int(random.next() as i64 >> random.below(64)),
        3 => Value::from(random.next()),
        4 => Value::Float(f64::from(random.next() as u32) / 8.0),
        5 => Value::Bin(random.bytes(300)),
        6 => Value::Str(String::from_utf8_lossy(&random.bytes(60)).into_owned()),
        7 => Value::Array((0..random.below(20)).map(|_| any_value(random, depth - 1)).collect()),
        _ => Value::Map((0..random.below(20)).map(|n| (format!("k{n}"), any_value(random, depth - 1))).collect()),
    }
}

#[test]
fn messages_survive_the_way_there_and_back_and_rubbish_is_refused() {
    run("messages", |random| {
        let value = any_value(random, 4);
        let mut bytes = value.encode();
        assert_eq!(decode(&bytes).as_ref(), Ok(&value));
        random.mutate(&mut bytes);
        if let Ok(other) = decode(&bytes) {
            // By their bytes: a float that is no number does not equal itself.
            assert_eq!(decode(&other.encode()).map(|again| again.encode()), Ok(other.encode()));
        }
        let _ = decode(&random.bytes(100));
    });
}

struct Chunks(Vec<Vec<u8>>);

impl Source for Chunks {
    fn next(&mut self) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.0.pop())
    }
}

#[test]
fn any_archive_is_read_to_its_end_or_refused() {
    let tar = |format: &str| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tar");
        std::process::Command::new("tar")
            .args(["-C", path, &format!("--format={format}"), "-cf", "-", "."])
            .output()
            .expect("tar runs")
            .stdout
    };
    let holes = std::env::temp_dir().join(format!("hutch-fuzz-holes-{}", std::process::id()));
    std::fs::create_dir_all(&holes).expect("makes");
    let with_holes = std::fs::File::create(holes.join("file")).expect("makes");
    for piece in 0..40u64 {
        std::os::unix::fs::FileExt::write_at(&with_holes, b"piece", piece * 65_536).expect("writes");
    }
    let sparse = |arguments: &[&str]| {
        let tar =
            std::process::Command::new("tar").arg("-C").arg(&holes).args(["-cSf", "-"]).args(arguments).arg("file").output();
        tar.expect("tar runs").stdout
    };
    let seeds = [
        tar("gnu"),
        tar("pax"),
        tar("ustar"),
        tar("v7"),
        sparse(&["--format=gnu"]),
        sparse(&["--format=pax", "--sparse-version=0.0"]),
        sparse(&["--format=pax", "--sparse-version=0.1"]),
        sparse(&["--format=pax", "--sparse-version=1.0"]),
    ];
    std::fs::remove_dir_all(&holes).expect("removes");
    run("archives", |random| {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        // Mostly in the headers: they are at the beginnings of blocks.
        let block = random.below(bytes.len() / 512) * 512;
        let mut part = bytes[block..].to_vec();
        random.mutate(&mut part);
        bytes.truncate(block);
        bytes.extend(part);
        let chunk = 1 + random.below(5000);
        let mut chunks: Vec<Vec<u8>> = bytes.chunks(chunk).map(<[u8]>::to_vec).collect();
        chunks.reverse();
        let mut reader = Reader::new(Chunks(chunks));
        for _ in 0..10_000 {
            match reader.entry() {
                Ok(Some(header)) => {
                    if let Ok(names) = names(&header.path) {
                        assert!(names.iter().all(|name| !name.is_empty() && name != b".." && !name.contains(&b'/')));
                    }
                    if let Some(sparse) = &header.sparse {
                        let mut end = 0;
                        for piece in &sparse.pieces {
                            assert!(piece.offset >= end && piece.bytes <= sparse.size - piece.offset, "{sparse:?}");
                            end = piece.offset + piece.bytes;
                        }
                        assert_eq!(sparse.pieces.iter().map(|piece| piece.bytes).sum::<u64>(), header.size);
                    }
                    if reader.skip(header.size).and_then(|()| reader.skip_padding(header.size)).is_err() {
                        return;
                    }
                }
                Ok(None) | Err(_) => return,
            }
        }
        panic!("an archive without end");
    });
}

#[test]
fn texts_of_the_image_and_the_kernel_never_confuse_their_parsers() {
    let passwd = std::fs::read("/etc/passwd").unwrap_or_default();
    let group = std::fs::read("/etc/group").unwrap_or_default();
    let table = std::fs::read("/proc/net/tcp").unwrap_or_default();
    run("texts", |random| {
        let mut mutated = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            random.mutate(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (passwd, group, table) = (mutated(&passwd), mutated(&group), mutated(&table));
        for spec in ["root", "0", "daemon:bin", "99:99", ":", ""] {
            let _ = resolve_in(&passwd, &group, spec);
        }
        let _ = (parse_table("tcp", &table), parse_kill(&mutated(b"Killed process 12 (a)")));
        let _ = (parse_address(&mutated(b"10.0.2.15/24")), parse_mac(&mutated(b"52:54:00:12:34:56")));
    });
}
