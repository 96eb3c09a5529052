//! Random job specs of all kinds, small enough to end within a seed.

use rand::RngExt;
use rand::rngs::StdRng;
use weir::model::device::DeviceAmount;
use weir::model::id::JobId;
use weir::model::region::RegionCode;
use weir::model::spec::{
    Dependency, DependencyCondition, DeviceRequest, EnvValue, EnvVar, JobSpec, NodeLosses, OnPoolLost,
    OnUnitFailure, RetryOn, RetryPolicy, Run, Simulate, Toleration, minimal,
};

/// A random spec; it may depend on one of the `live` jobs.
pub(crate) fn random_spec(rng: &mut StdRng, live: &[JobId]) -> JobSpec {
    let mut spec = minimal();
    let group = &mut spec.groups[0];
    group.request.resources.cpu_millis = [500, 1_000, 2_000, 8_000][rng.random_range(0..4)];
    if rng.random_bool(0.4) {
        let amount = if rng.random_bool(0.4) {
            DeviceAmount::Fraction(rng.random_range(1..1_000))
        } else {
            DeviceAmount::Whole(rng.random_range(1..5))
        };
        let models = if rng.random_bool(0.5) { vec!["A100-80G".to_owned()] } else { Vec::new() };
        group.request.devices = Some(DeviceRequest { models, amount });
    }
    group.count = if rng.random_bool(0.3) { rng.random_range(2..6) } else { 1 };
    group.gang = group.count > 1 && rng.random_bool(0.4);
    let exit_code = [0, 0, 0, 0, 0, 1, 137][rng.random_range(0..7)];
    // Some run for longer than it takes to declare a pool lost.
    let longest_ms = if rng.random_bool(0.1) { 90_000 } else { 20_000 };
    group.simulate = Some(Simulate { duration_ms: rng.random_range(1..longest_ms), exit_code });
    if rng.random_bool(0.1) {
        let mut second = group.clone();
        second.name = "second".to_owned();
        if rng.random_bool(0.5) {
            second.request.devices = None;
            second.request.resources.cpu_millis = 4_000;
        }
        (second.count, second.gang) = (rng.random_range(1..4), false);
        spec.groups.push(second);
        spec.gang_job = rng.random_bool(0.5);
    }
    spec.priority = rng.random_range(-1..3);
    if rng.random_bool(0.5) {
        let on = vec![RetryOn::Failed, RetryOn::TimedOut, RetryOn::StartFailed, RetryOn::Unknown];
        spec.retry = RetryPolicy {
            max_attempts: rng.random_range(1..4),
            on,
            backoff_ms: 500,
            backoff_max_ms: 5_000,
            ..spec.retry
        };
    }
    if rng.random_bool(0.3) {
        spec.retry.max_node_losses = NodeLosses(rng.random_range(0..3));
    }
    if rng.random_bool(0.5) {
        spec.on_pool_lost = OnPoolLost::Requeue;
        spec.may_overlap = rng.random_bool(0.2);
        // 0 is the queue's default, which outlasts most faults.
        spec.lease_ms = [20_000, 20_000, 45_000, 0][rng.random_range(0..4)];
    }
    if rng.random_bool(0.2) {
        spec.on_unit_failure = OnUnitFailure::Continue { max_failed: [1, u32::MAX][rng.random_range(0..2)] };
    }
    if rng.random_bool(0.15) {
        spec.max_run_ms = rng.random_range(1..20_000);
    }
    if rng.random_bool(0.1) {
        spec.start_limit_ms = rng.random_range(1..400);
    }
    if rng.random_bool(0.15) && !live.is_empty() {
        let job = live[rng.random_range(0..live.len())];
        let condition =
            [DependencyCondition::Any, DependencyCondition::Succeeded, DependencyCondition::Failed];
        let condition = condition[rng.random_range(0..3)];
        spec.depends_on = vec![Dependency { job, condition }];
    }
    if rng.random_bool(0.3) {
        constrain(rng, &mut spec);
    }
    spec
}

/// Gives the tasks of a job the demand that all such jobs' tasks have.
pub(crate) fn make_alike(spec: &mut JobSpec) {
    let alike = minimal();
    for group in &mut spec.groups {
        group.request = alike.groups[0].request.clone();
    }
    (spec.constraints, spec.on_pool_lost) = (alike.constraints, alike.on_pool_lost);
    spec.lease_ms = alike.lease_ms;
}

/// Adds a random constraint, which no pool may satisfy.
fn constrain(rng: &mut StdRng, spec: &mut JobSpec) {
    let (group, constraints) = (&mut spec.groups[0], &mut spec.constraints);
    match rng.random_range(0..12) {
        0 | 1 => constraints.regions_denied = vec![RegionCode::parse("CN-XJ").unwrap_or_default()],
        2 => constraints.regions_allowed = vec![RegionCode::parse("CN-GZ").unwrap_or_default()],
        3 => constraints.pools = vec!["pool-1".to_owned()],
        4 => constraints.real_only = true,
        5 => {
            let program = group.run.program().clone();
            group.run = Run::Container { image: "registry.example/train:1".to_owned(), program };
        }
        6 => {
            let rack = format!("r{}", rng.random_range(0..3));
            constraints.node_labels.insert("rack".to_owned(), rack);
        }
        7 => constraints.tolerations = vec![Toleration { key: "dedicated".to_owned(), value: None }],
        8 => {
            if let Run::Process(program) = &mut group.run {
                let value = EnvValue::Secret { name: "store".to_owned(), key: "password".to_owned() };
                program.env.push(EnvVar { name: "PASSWORD".to_owned(), value });
            }
        }
        9 => group.request.resources.cpu_millis = 16_000,
        // A gang that is too large for every pool.
        10 => (group.count, group.gang, group.request.resources.cpu_millis) = (40, true, 8_000),
        _ => {
            let devices = DeviceRequest { models: vec!["T4".to_owned()], amount: DeviceAmount::Whole(4) };
            group.request.devices = Some(devices);
        }
    }
}

/// Many short tasks that each take a whole node: claims are reused, with tasks queued behind them.
pub(crate) fn burst_spec(rng: &mut StdRng) -> JobSpec {
    let mut spec = minimal();
    let group = &mut spec.groups[0];
    group.request.resources.cpu_millis = 8_000;
    group.count = rng.random_range(5..40);
    group.simulate = Some(Simulate { duration_ms: rng.random_range(1..30), exit_code: 0 });
    spec.retry.on = vec![RetryOn::Unknown, RetryOn::StartFailed];
    spec.retry.max_attempts = 3;
    spec
}
