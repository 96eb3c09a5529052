//! Queues: bad values of every field, missing parents, updates based on an old revision.

use tonic::Code;
use weir::api::proto::v1;

use crate::fake::Broker;
use crate::table::{Call, Case, invalid, refused};

fn queue(name: &str) -> v1::Queue {
    v1::Queue { name: name.to_owned(), ..Default::default() }
}

fn create(queue: v1::Queue) -> Call {
    Call::CreateQueue(v1::CreateQueueRequest { token: String::new(), queue: Some(queue) })
}

fn update(queue: v1::Queue) -> Call {
    Call::UpdateQueue(v1::UpdateQueueRequest { token: String::new(), queue: Some(queue) })
}

fn delete(token: &str, name: &str, revision: u64) -> Call {
    let (token, name) = (token.to_owned(), name.to_owned());
    Call::DeleteQueue(v1::DeleteQueueRequest { token, name, revision })
}

/// Bad values of everything about queues.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let calls: [fn(v1::Queue) -> Call; 2] = [create, update];
    for call in calls {
        let with = |change: fn(&mut v1::Queue)| {
            let mut changed = queue("default");
            change(&mut changed);
            call(changed)
        };
        let names = ["", "A", "a//b", "/a", "a/", "a\u{202e}", "a b", &"n".repeat(1 << 20)];
        all.extend(names.iter().map(|name| invalid(call(queue(name)), "queue.name", "is not a path of")));
        all.extend([
            invalid(call(queue("a/b/c/d/e/f/g/h/i")), "queue.name", "9 levels, at most 8"),
            invalid(with(|q| q.weight = 1_000_001), "queue.weight", "1000001 is not within 1 and 1000000"),
            invalid(with(|q| q.max_run_ms_default = u64::MAX), "queue.max_run_ms_default", "is not within 1"),
            invalid(with(|q| q.lease_ms_default = 1), "queue.lease_ms_default", "is not within 20s"),
            invalid(
                with(|q| {
                    q.guarantee = Some(v1::Resources { cpu_millis: 2_000, ..Default::default() });
                    q.limit = Some(v1::Limits { cpu_millis: Some(1_000), ..Default::default() });
                }),
                "queue.guarantee",
                "2 CPUs is above the limit of 1 CPUs",
            ),
            invalid(
                with(|q| {
                    let other = [("a\u{202e}".to_owned(), 1)].into();
                    q.guarantee = Some(v1::Resources { other, ..Default::default() });
                }),
                "queue.guarantee.other",
                "\"a\\u{202e}\" is not letters",
            ),
        ]);
    }
    let token = || "t".repeat(129);
    all.extend([
        invalid(
            Call::CreateQueue(v1::CreateQueueRequest { token: token(), queue: Some(queue("a")) }),
            "token",
            "129 bytes, at most 128",
        ),
        invalid(
            Call::UpdateQueue(v1::UpdateQueueRequest { token: token(), queue: Some(queue("default")) }),
            "token",
            "129 bytes, at most 128",
        ),
        invalid(
            Call::CreateQueue(v1::CreateQueueRequest { token: String::new(), queue: None }),
            "queue",
            "is missing",
        ),
        invalid(
            Call::UpdateQueue(v1::UpdateQueueRequest { token: String::new(), queue: None }),
            "queue",
            "is missing",
        ),
        invalid(create(queue("a/b")), "queue.name", "its parent queue \"a\" does not exist"),
        refused(create(queue("default")), "queue.name", Code::AlreadyExists, "\"default\" exists already"),
        refused(update(queue("nope")), "queue.name", Code::NotFound, "queue \"nope\" does not exist"),
        refused(
            update(v1::Queue { revision: 999_999, ..queue("default") }),
            "queue.revision",
            Code::Aborted,
            "not 999999",
        ),
        invalid(delete(&token(), "default", 0), "token", "129 bytes, at most 128"),
        invalid(delete("", "default", 0), "name", "the default queue can't be deleted"),
        refused(delete("", "default", 999_999), "revision", Code::Aborted, "not 999999"),
    ]);
    for name in ["nope", "", "\u{202e}", &"n".repeat(1 << 20)] {
        all.push(refused(delete("", name, 0), "name", Code::NotFound, "does not exist"));
        let get = Call::GetQueue(v1::GetQueueRequest { name: name.to_owned() });
        all.push(refused(get, "name", Code::NotFound, "does not exist"));
    }
    all
}

#[tokio::test]
async fn update_based_on_an_old_revision_is_refused_and_changes_nothing() {
    let broker = Broker::start();
    let client = broker.client();
    let list = || async {
        client.queues().list_queues(v1::ListQueuesRequest {}).await.expect("queues").into_inner().queues
    };
    let read = list().await[0].clone();
    let heavier = |weight| v1::UpdateQueueRequest {
        token: String::new(),
        queue: Some(v1::Queue { weight, ..read.clone() }),
    };
    client.queues().update_queue(heavier(2)).await.expect("the first");
    let status =
        client.queues().update_queue(heavier(3)).await.expect_err("the second is based on an old revision");
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert_eq!(list().await[0].weight, 2);
}

#[tokio::test]
async fn largest_limits_do_not_overflow_and_a_zero_limit_holds() {
    let broker = Broker::start();
    let client = broker.client();
    let most = v1::Limits {
        cpu_millis: Some(u64::MAX),
        memory_bytes: Some(u64::MAX),
        storage_bytes: Some(0),
        device_millis: Some(u64::MAX),
    };
    let most_of_all = v1::Resources { cpu_millis: u64::MAX, memory_bytes: u64::MAX, ..Default::default() };
    let wide = v1::Queue { limit: Some(most), guarantee: Some(most_of_all), ..queue("wide") };
    let create = v1::CreateQueueRequest { token: String::new(), queue: Some(wide) };
    client.queues().create_queue(create).await.expect("a queue");
    let agent = crate::fake::Agent::ready(&client, "normal", 1).await;
    let mut request = crate::job::valid();
    request.jobs[0].queue = "wide".to_owned();
    client.jobs().submit(request.clone()).await.expect("within the limits");
    request.jobs[0].spec.as_mut().expect("a spec").groups[0]
        .resources
        .as_mut()
        .expect("some")
        .storage_bytes = 1;
    let blocked = client.jobs().submit(request).await.expect("it waits").into_inner().jobs[0].id;
    let why = v1::WhyRequest { job: Some(v1::JobRef { id: blocked, ..Default::default() }) };
    let why = client.jobs().why(why).await.expect("a reason").into_inner();
    assert!(why.reasons.iter().any(|reason| reason.code == "QueueLimit"), "{why:?}");
    agent.check_session(&client).await;
}
