//! Lists and watches: revisions in the future, and lists that are too large for one message.

use weir::api::proto::v1;
use weir::api::proto::v1::task_group::Run;

use crate::fake::{Agent, Broker, waiting_job};
use crate::job::valid;

#[tokio::test]
async fn watch_from_a_future_revision_starts_with_a_list() {
    let broker = Broker::start();
    let client = broker.client();
    let id = waiting_job(&client, "waits").await;
    let request = v1::WatchJobsRequest { job: None, from_revision: u64::MAX };
    let mut watch = client.jobs().watch_jobs(request).await.expect("a watch").into_inner();
    let first = watch.message().await.expect("a message").expect("a list");
    assert!(first.relisted && first.jobs.len() == 1 && first.jobs[0].id == id, "{first:?}");
    assert!(first.revision > 0 && first.revision < 1_000, "{first:?}");

    let agent = Agent::ready(&client, "normal", 1).await;
    let request = v1::WatchPoolsRequest { from_revision: u64::MAX };
    let mut watch = client.pools().watch_pools(request).await.expect("a watch").into_inner();
    let first = watch.message().await.expect("a message").expect("a list");
    assert!(first.relisted && first.pools.len() == 1, "{first:?}");
    agent.check_session(&client).await;
}

/// A watch that resumes beyond what the broker remembers must not lose the jobs that ended meanwhile.
#[tokio::test]
async fn watch_that_lists_again_has_the_jobs_that_ended_meanwhile() {
    let mut broker = Broker::start();
    let client = broker.client();
    let (gone, stays) = (waiting_job(&client, "gone").await, waiting_job(&client, "stays").await);
    let cancel = async |client: &weir::api::client::Client, id| {
        let jobs = vec![v1::JobRef { id, ..Default::default() }];
        let request = v1::CancelRequest { jobs, ..Default::default() };
        client.jobs().cancel(request).await.expect("cancelled").into_inner().revision
    };
    let seen = cancel(&client, gone).await;
    let ended = waiting_job(&client, "ended").await;
    cancel(&client, ended).await;
    // A broker that starts again remembers no changes.
    broker.restart();
    let client = broker.client();
    let request = v1::WatchJobsRequest { job: None, from_revision: seen };
    let mut watch = client.jobs().watch_jobs(request).await.expect("a watch").into_inner();
    let (mut found, mut revision) = (std::collections::BTreeMap::new(), 0);
    while revision == 0 {
        let message = watch.message().await.expect("a message").expect("a list");
        assert!(message.relisted, "{message:?}");
        found.extend(message.jobs.iter().map(|job| (job.id, job.phase())));
        revision = message.revision;
    }
    let expected = [(stays, v1::JobPhase::Pending), (ended, v1::JobPhase::Cancelled)];
    assert_eq!(found, expected.into(), "not the job that ended before");
}

#[tokio::test]
async fn count_by_a_label_with_a_value_for_each_job_is_refused() {
    let broker = Broker::start();
    let client = broker.client();
    let count = async || {
        let by = vec![v1::CountBy { by: Some(v1::count_by::By::Label("run".to_owned())) }];
        client.jobs().count_jobs(v1::CountJobsRequest { by, ..Default::default() }).await
    };
    for part in 0..11 {
        let mut job = valid().jobs.remove(0);
        let jobs = (0..1_000).map(|index| {
            job.name = format!("job-{part}-{index}");
            let spec = job.spec.as_mut().expect("a spec");
            spec.labels.insert("run".to_owned(), format!("{part}-{index}"));
            job.clone()
        });
        let request = v1::SubmitRequest { jobs: jobs.collect(), allow_pending: true, ..Default::default() };
        client.jobs().submit(request).await.expect("accepted");
        if part == 9 {
            assert_eq!(count().await.expect("counts").into_inner().counts.len(), 10_000);
        }
    }
    let status = count().await.expect_err("too many");
    assert!(status.message().contains("by: the jobs have more than 10000 different values"), "{status:?}");
}

/// Names of the pools in the next message of a watch, if it is a whole list.
async fn next_list(watch: &mut tonic::Streaming<v1::WatchPoolsResponse>) -> Vec<String> {
    loop {
        let message = watch.message().await.expect("a message").expect("more");
        if message.relisted {
            return message.pools.into_iter().map(|pool| pool.name).collect();
        }
    }
}

#[tokio::test]
async fn watch_lists_the_pools_again_when_one_is_deleted() {
    let broker = Broker::start();
    let client = broker.client();
    let (_stays, goes) = (Agent::ready(&client, "stays", 1).await, Agent::ready(&client, "goes", 1).await);
    let request = v1::WatchPoolsRequest { from_revision: 0 };
    let mut watch = client.pools().watch_pools(request).await.expect("a watch").into_inner();
    assert_eq!(next_list(&mut watch).await, ["stays", "goes"]);
    drop(goes);
    let request = v1::DeletePoolRequest { name: "goes".to_owned(), ..Default::default() };
    // Until the broker counts the agent as gone.
    while let Err(status) = client.pools().delete_pool(request.clone()).await {
        assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status:?}");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    assert_eq!(next_list(&mut watch).await, ["stays"]);
}

#[tokio::test]
async fn watch_sends_queues_whose_settings_change_and_lists_them_again_when_one_is_deleted() {
    let broker = Broker::start();
    let client = broker.client();
    let request = v1::WatchQueuesRequest { from_revision: 0 };
    let mut watch = client.queues().watch_queues(request).await.expect("a watch").into_inner();
    let mut next = async || {
        let message = watch.message().await.expect("a message").expect("more");
        let queues = message.queues.into_iter().map(|queue| (queue.name, queue.weight));
        (message.relisted, queues.collect::<Vec<_>>(), message.revision)
    };
    let default = ("default".to_owned(), 1);
    assert_eq!(next().await.1, std::slice::from_ref(&default));
    let team = |weight| v1::Queue { name: "team".to_owned(), weight, ..Default::default() };
    let create = v1::CreateQueueRequest { queue: Some(team(2)), ..Default::default() };
    client.queues().create_queue(create).await.expect("a queue");
    let (relisted, queues, _) = next().await;
    assert_eq!((relisted, queues), (false, vec![("team".to_owned(), 2)]));
    // What uses a queue is no change of its settings: the next message is about the update.
    waiting_job(&client, "waits").await;
    let update = v1::UpdateQueueRequest { queue: Some(team(3)), ..Default::default() };
    client.queues().update_queue(update).await.expect("an update");
    let (relisted, queues, seen) = next().await;
    assert_eq!((relisted, queues), (false, vec![("team".to_owned(), 3)]));
    let got = client.queues().get_queue(v1::GetQueueRequest { name: "team".to_owned() }).await;
    let got = got.expect("a queue").into_inner();
    assert!(got.queue.is_some_and(|queue| queue.weight == 3) && got.revision >= seen);
    let delete = v1::DeleteQueueRequest { name: "team".to_owned(), ..Default::default() };
    client.queues().delete_queue(delete).await.expect("deleted");
    let (relisted, queues, _) = next().await;
    assert_eq!((relisted, queues), (true, vec![default]));
}

#[tokio::test]
async fn list_of_large_jobs_comes_in_pages_of_bounded_size() {
    let broker = Broker::start();
    let client = broker.client();
    let large = (0..20).map(|n| {
        let mut job = valid().jobs.remove(0);
        job.name = format!("large-{n}");
        let spec = job.spec.as_mut().expect("a spec");
        spec.constraints = Some(v1::Constraints { pools: vec!["nowhere".to_owned()], ..Default::default() });
        let Some(Run::Process(program)) = &mut spec.groups[0].run else { panic!("a process") };
        program.args = vec![format!("{n}{}", "x".repeat(100_000))];
        job
    });
    let large: Vec<v1::Submission> = large.collect();
    for part in 0..4 {
        let mut jobs = large.clone();
        jobs.iter_mut().for_each(|job| job.name.push_str(&format!("-{part}")));
        let request = v1::SubmitRequest { token: String::new(), jobs, allow_pending: true };
        client.jobs().submit(request).await.expect("accepted");
    }
    let mut request =
        v1::ListJobsRequest { page_size: 1_000, view: v1::JobView::Full.into(), ..Default::default() };
    let mut found = Vec::new();
    loop {
        let page = client.jobs().list_jobs(request.clone()).await.expect("a page").into_inner();
        assert!(page.jobs.len() < 50, "{} jobs in one page", page.jobs.len());
        found.extend(page.jobs.iter().map(|job| job.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(found, (1..=80).rev().collect::<Vec<u64>>());
    let mut watch =
        client.jobs().watch_jobs(v1::WatchJobsRequest::default()).await.expect("a watch").into_inner();
    let (mut found, mut revision) = (0, 0);
    while revision == 0 {
        let message = watch.message().await.expect("a message").expect("a list");
        assert!(message.relisted && message.jobs.len() < 10, "{} jobs in one message", message.jobs.len());
        (found, revision) = (found + message.jobs.len(), message.revision);
    }
    assert_eq!(found, 80);
}
