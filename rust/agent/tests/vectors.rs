//! The golden vectors that the host's tests read too.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
use hutch_agent::output::Output;
use hutch_agent::wire::decoder::{Decoder, Step};
use hutch_agent::wire::frame::{FrameType, Header};
use hutch_agent::wire::value::{Value, decode};
use serde_json::Value as Json;

fn vectors() -> Json {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../test/vectors/agent-protocol.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the vectors")).expect("JSON")
}

fn bytes(value: &Json) -> Vec<u8> {
    let text = value.as_str().expect("hexadecimal");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal")).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn items<'a>(vectors: &'a Json, name: &str) -> &'a Vec<Json> {
    vectors[name].as_array().expect("an array")
}

fn feed(decoder: &mut Decoder, bytes: &[u8]) {
    decoder.space()[..bytes.len()].copy_from_slice(bytes);
    decoder.filled(bytes.len());
}

fn connected(vectors: &Json) -> Decoder {
    let mut decoder = Decoder::default();
    feed(&mut decoder, &bytes(&vectors["preamble"]));
    assert!(matches!(decoder.step(), Step::Preamble { .. }));
    decoder
}

fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => Value::Int(number),
            (None, number) => Value::Float(number.expect("a number")),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::Array(items.iter().map(value_of).collect()),
        Json::Object(map) => {
            if let Some(bin) = map.get("$bin") {
                return Value::Bin(bytes(bin));
            }
            if let Some(int) = map.get("$int") {
                let text = int.as_str().expect("digits");
                return text.parse::<i64>().map_or_else(|_| Value::UInt(text.parse().expect("digits")), Value::Int);
            }
            Value::Map(map.iter().map(|(key, value)| (key.clone(), value_of(value))).collect())
        }
    }
}

/// Maps without their order: JSON's has none.
fn sorted(value: Value) -> Value {
    match value {
        Value::Map(mut entries) => {
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Map(entries.into_iter().map(|(key, value)| (key, sorted(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[test]
fn every_frame_of_the_host_is_read_as_it_was_meant() {
    let vectors = vectors();
    for vector in items(&vectors, "frames").iter().filter(|vector| vector["from"] == "host") {
        let mut decoder = connected(&vectors);
        feed(&mut decoder, &bytes(&vector["bytes"]));
        let Step::Frame { header, payload } = decoder.step() else { panic!("{}: no frame", vector["name"]) };
        assert_eq!(u64::from(header.kind as u8), vector["typeNumber"].as_u64().expect("a type"), "{}", vector["name"]);
        assert_eq!(u64::from(header.stream), vector["stream"].as_u64().expect("a stream"), "{}", vector["name"]);
        assert_eq!(hex(payload), vector["payload"], "{}", vector["name"]);
        if let Some(message) = vector.get("message") {
            assert_eq!(sorted(decode(payload).expect("a message")), sorted(value_of(message)), "{}", vector["name"]);
        }
        assert_eq!(decoder.step(), Step::NeedMore);
    }
}

#[test]
fn every_frame_of_the_agent_is_written_byte_by_byte() {
    let vectors = vectors();
    let mark = bytes(&vectors["mark"]).try_into().expect("four bytes");
    for vector in items(&vectors, "frames").iter().filter(|vector| vector["from"] == "agent") {
        let kind = match vector["type"].as_str().expect("a type") {
            "REPLY" => FrameType::Reply,
            "DATA" => FrameType::Data,
            "EVENT" => FrameType::Event,
            "CREDIT" => FrameType::Credit,
            "END" => FrameType::End,
            "CLOSE" => FrameType::Close,
            "PONG" => FrameType::Pong,
            other => panic!("{other}"),
        };
        let mut output = Output::default();
        output.reset(mark);
        let (flag, stream) =
            (vector["flag"].as_u64().expect("a flag") as u8, vector["stream"].as_u64().expect("a stream") as u32);
        output.frame(kind, flag, stream, &[&bytes(&vector["payload"])]);
        assert_eq!(hex(output.waiting()), vector["bytes"], "{}", vector["name"]);
        if let Some(message) = vector.get("message") {
            // Decoded, not encoded: the order of keys is the writer's own.
            assert_eq!(sorted(decode(&bytes(&vector["payload"])).expect("a message")), sorted(value_of(message)));
        }
        // The host alone may read these: to us they are a breach.
        let header: [u8; 12] = bytes(&vector["bytes"])[..12].try_into().expect("a header");
        if matches!(kind, FrameType::Reply | FrameType::Event | FrameType::Close) {
            assert!(Header::parse(header).is_err(), "{}", vector["name"]);
        }
    }
}

#[test]
fn every_broken_frame_ends_the_connection() {
    let vectors = vectors();
    for vector in items(&vectors, "brokenFrames").iter().chain(items(&vectors, "brokenFromHost")) {
        let mut decoder = connected(&vectors);
        feed(&mut decoder, &bytes(&vector["bytes"]));
        assert!(matches!(decoder.step(), Step::Broken(_)), "{}", vector["name"]);
        assert_eq!(decoder.mark(), None);
    }
}

#[test]
fn preambles_are_found_in_any_rubbish_and_any_chunking() {
    let vectors = vectors();
    for vector in items(&vectors, "scans") {
        let all = bytes(&vector["bytes"]);
        for chunk in [1, 2, 7, all.len()] {
            let mut decoder = Decoder::default();
            let mut steps = Vec::new();
            for part in all.chunks(chunk) {
                feed(&mut decoder, part);
                loop {
                    match decoder.step() {
                        Step::NeedMore => break,
                        Step::Preamble { nonce } => steps.push(format!("preamble {}", hex(&nonce))),
                        Step::OtherVersion { nonce, version } => steps.push(format!("version {version} {}", hex(&nonce))),
                        Step::Frame { header, .. } => steps.push(format!("frame {} {}", header.kind as u8, header.stream)),
                        Step::Broken(_) => steps.push("broken".to_owned()),
                    }
                }
            }
            assert_eq!(Json::from(steps), vector["steps"], "{} in chunks of {chunk}", vector["name"]);
        }
    }
}

#[test]
fn messages_are_read_and_written_in_their_shortest_form() {
    for vector in items(&vectors(), "messages") {
        let value = decode(&bytes(&vector["bytes"])).expect("a message");
        assert_eq!(sorted(value.clone()), sorted(value_of(&vector["value"])), "{}", vector["name"]);
        assert_eq!(hex(&value.encode()), vector["bytes"], "{}", vector["name"]);
    }
}

#[test]
fn what_breaks_a_bound_is_no_message() {
    for vector in items(&vectors(), "brokenMessages") {
        assert!(decode(&bytes(&vector["bytes"])).is_err(), "{}", vector["name"]);
    }
}
