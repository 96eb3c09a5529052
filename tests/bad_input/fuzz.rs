//! Random requests of every method of every service, generated from the protocol's compiled definitions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;
use weir::api::descriptor::methods;

use crate::fake::{Agent, Broker, waiting_job};
use crate::random::{chance, mutate, number, repeat, seeds, varint};
use crate::raw;

/// Requests per seed.
const REQUESTS: usize = 60;
/// Strings that are valid, or nearly, in some field.
const WORDS: [&str; 28] = [
    "",
    "a",
    "default",
    "default/x",
    "waits",
    "normal",
    "fuzz",
    "n1",
    "CN-CQ",
    "500000",
    "CN-XX",
    "true",
    "T4",
    "A100-80G",
    "nvidia.com/gpu",
    "/tmp",
    "-1",
    "0",
    "1",
    "18446744073709551615",
    "Succeeded",
    "Failed",
    "*",
    "\u{202e}",
    "a\u{0}b",
    "重庆",
    "WEIR_JOB",
    "PATH",
];

fn text(rng: &mut StdRng, journal: &str) -> Vec<u8> {
    match rng.random_range(0..8) {
        0 => format!(
            "{journal}-{}-{}-{}",
            rng.random_range(0..9),
            rng.random_range(0..3),
            rng.random_range(0..3)
        )
        .into_bytes(),
        1 => vec![b'x'; rng.random_range(0..400)],
        2 => (0..rng.random_range(0..8)).map(|_| rng.random()).collect(),
        _ => WORDS[rng.random_range(0..WORDS.len())].as_bytes().to_vec(),
    }
}

/// An encoded field with a random value.
fn field(rng: &mut StdRng, field: &FieldDescriptor, journal: &str, depth: usize) -> Vec<u8> {
    let number_of = u64::from(field.number());
    let tagged = |wire: u64, content: Vec<u8>| [varint(number_of << 3 | wire), content].concat();
    let with_length = |content: Vec<u8>| tagged(2, [varint(content.len() as u64), content].concat());
    match field.kind() {
        Kind::Message(inner) => with_length(message(rng, &inner, journal, depth + 1)),
        Kind::String => with_length(text(rng, journal)),
        Kind::Bytes => {
            with_length(vec![rng.random(); if rng.random_ratio(2, 3) { 16 } else { rng.random_range(0..40) }])
        }
        Kind::Bool => tagged(0, vec![rng.random_range(0..2)]),
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => tagged(1, number(rng).to_le_bytes().to_vec()),
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => {
            tagged(5, (number(rng) as u32).to_le_bytes().to_vec())
        }
        _ => tagged(0, varint(number(rng))),
    }
}

/// An encoded message of this type with some of its fields.
fn message(rng: &mut StdRng, of: &MessageDescriptor, journal: &str, depth: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A request that lacks fields is refused early: nearly all of its own fields are set.
    let (some, all) = if depth == 0 { (9, 10) } else { (2, 3) };
    for described in of.fields() {
        if rng.random_ratio(some, all) {
            let times = if described.is_list() || described.is_map() { rng.random_range(1..3) } else { 1 };
            for _ in 0..times {
                bytes.extend(field(rng, &described, journal, depth));
            }
        }
    }
    bytes
}

/// The methods of `weir.v1`.
fn weir_methods() -> impl Iterator<Item = (&'static String, &'static MethodDescriptor)> {
    methods().iter().filter(|(path, _)| path.starts_with("/weir.v1."))
}

async fn one_seed(seed: u64, channel: &Channel, token: &str, journal: &str) -> Result<(), String> {
    let mut rng = chance(seed);
    let methods: Vec<(&String, &MethodDescriptor)> = weir_methods().collect();
    for index in 0..REQUESTS {
        let (method, described) = methods[(index + seed as usize) % methods.len()];
        let messages = (0..rng.random_range(1..4)).map(|_| {
            let bytes = message(&mut rng, &described.input(), journal, 0);
            if rng.random_ratio(1, 3) { mutate(&mut rng, &bytes) } else { bytes }
        });
        let messages: Vec<Vec<u8>> = messages.collect();
        let Err(status) = raw::stream(channel, token, method, messages.clone()).await else { continue };
        if matches!(status.code(), Code::Unknown | Code::Internal | Code::DataLoss | Code::Unimplemented) {
            return Err(format!("{method} of {messages:?}: {status:?}"));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_requests_get_no_internal_or_unknown_status() {
    assert!(weir_methods().count() >= 20);
    let broker = Broker::start();
    let client = broker.client();
    let bystander = Agent::ready(&client, "normal", 1).await;
    waiting_job(&client, "waits").await;
    let before = broker.resident_bytes();
    let tried = Arc::new(AtomicU64::new(0));
    let mut seeds = seeds();
    let mut running = JoinSet::new();
    loop {
        while running.len() < 8 {
            let Some(seed) = seeds.next() else { break };
            let (channel, token, journal) =
                (raw::channel(&broker).await, broker.token.clone(), bystander.journal.clone());
            let tried = tried.clone();
            running.spawn(async move {
                let outcome = one_seed(seed, &channel, &token, &journal).await;
                tried.fetch_add(REQUESTS as u64, Ordering::Relaxed);
                outcome.map_err(|error| format!("{error}\n{}", repeat("bad_input", seed, "fuzz")))
            });
        }
        match running.join_next().await {
            Some(done) => done.expect("a seed ends").unwrap_or_else(|error| panic!("{error}")),
            None => break,
        }
    }
    broker.check_health(&client).await;
    // The first session has read nothing meanwhile. The broker may have closed it, so open a new one.
    Agent::ready(&client, "normal", 1).await.check_session(&client).await;
    let grown = broker.resident_bytes().saturating_sub(before);
    println!("{} requests, memory +{} MiB", tried.load(Ordering::Relaxed), grown >> 20);
}
