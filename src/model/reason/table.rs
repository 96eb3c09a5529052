//! The texts of reasons: message, meaning and remedy of each code, in every language.

use super::super::language::{Entry, Text};

/// Texts of a reason.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The message of one case; `{name}` stands for a parameter.
    pub message: Text,
    pub entry: Entry,
}

const fn row(code: &'static str, message: Text, meaning: Text, remedy: Text) -> Row {
    Row { message, entry: Entry::new(code, meaning, remedy) }
}

const fn t(english: &'static str, chinese: &'static str) -> Text {
    Text::new(english, chinese)
}

/// Why a pool does not take a unit.
pub const POOLS: &[Row] = &[
    row(
        "RegionNotAllowed",
        t("in {region}, not allowed", "位于 {region}，不在允许的地域内"),
        t("the job's constraints exclude this pool's region", "作业的约束排除了该算力池所在的地域"),
        t("allow the region", "允许该地域"),
    ),
    row(
        "PoolNotAllowed",
        t("not among the job's pools", "不在作业指定的算力池之列"),
        t(
            "the job names its allowed pools, and this pool is not one of them",
            "作业指定了允许的算力池，而该算力池不在其中",
        ),
        t("add the pool, or name none", "加入该算力池，或不指定算力池"),
    ),
    row(
        "PoolSimulated",
        t("only simulates tasks", "只模拟任务，不真正运行"),
        t(
            "the pool only simulates tasks. The job neither names it nor has `simulate` in all its groups, or sets `real_only`",
            "该算力池只模拟任务。作业没有指定它，也不是所有任务组都有 `simulate`，或者设置了 `real_only`",
        ),
        t("name the pool, or add `simulate` to all groups", "指定该算力池，或给所有任务组加上 `simulate`"),
    ),
    row(
        "RunUnsupported",
        t("does not run {needs}", "不能运行{needs}"),
        t(
            "the pool does not run this kind of task (process, container or pod)",
            "该算力池不能运行这类任务（进程、容器或 Pod）",
        ),
        t("use another kind of task, or another pool", "换一类任务，或换一个算力池"),
    ),
    row(
        "LeaseUnsupported",
        t(
            "does not support leases, which on_pool_lost: requeue needs",
            "不支持租约，而 on_pool_lost: requeue 需要租约",
        ),
        t(
            "the job's `on_pool_lost: requeue` needs leases, which this pool does not support",
            "作业的 `on_pool_lost: requeue` 需要租约，而该算力池不支持",
        ),
        t("set `on_pool_lost: wait`, or `may_overlap`", "设置 `on_pool_lost: wait`，或设置 `may_overlap`"),
    ),
    row(
        "SecretsUnsupported",
        t("does not resolve secrets", "不能解析密钥"),
        t(
            "the job refers to secrets, and this pool does not resolve secrets",
            "作业引用了密钥，而该算力池不能解析密钥",
        ),
        t("use another pool", "换一个算力池"),
    ),
    row(
        "SharesUnsupported",
        t("assigns whole devices only", "只能分配整张加速卡"),
        t(
            "a task requests a fraction of a device, and this pool assigns whole devices only",
            "任务请求加速卡的一部分，而该算力池只能分配整张加速卡",
        ),
        t("request a whole device", "请求整张加速卡"),
    ),
    row(
        "NoNodes",
        t("has no nodes", "没有节点"),
        t("the pool has no nodes", "该算力池没有节点"),
        t("wait until its agent reports nodes", "等待其代理上报节点"),
    ),
    row(
        "DeviceMissing",
        t("has no {models}", "没有 {models}"),
        t("no node has a device of a requested model", "没有节点拥有所请求型号的加速卡"),
        t("allow other models", "允许其他型号"),
    ),
    row(
        "NodeLabelMissing",
        t("none of {nodes} nodes has the requested labels", "{nodes} 个节点都没有所请求的标签"),
        t("no node has the requested labels", "没有节点带有所请求的标签"),
        t("label a node, or request fewer labels", "给节点加标签，或少请求一些标签"),
    ),
    row(
        "TaintNotTolerated",
        t("{nodes} nodes have a taint that the job does not tolerate", "{nodes} 个节点带有作业不容忍的污点"),
        t(
            "every node with the requested labels has a taint that the job does not tolerate",
            "带有所请求标签的节点都有作业不容忍的污点",
        ),
        t("add a toleration", "添加容忍"),
    ),
    row(
        "TaskTooLarge",
        t(
            "{needed} needed by one task, the largest node has {largest}",
            "单个任务需要 {needed}，最大的节点有 {largest}",
        ),
        t(
            "one task requests more than any suitable node has, even if the node were empty",
            "单个任务的请求超过任何合适节点的总量，即使节点空闲",
        ),
        t("request less per task", "减少每个任务的请求"),
    ),
    row(
        "PoolTooSmall",
        t("{needed} needed, {total} in total", "需要 {needed}，总共有 {total}"),
        t(
            "the gang requests more than the pool has, even if the pool were empty",
            "成组任务（gang）的请求超过算力池的总量，即使算力池空闲",
        ),
        t("make the gang smaller", "缩小成组任务（gang）"),
    ),
    row(
        "PoolCordoned",
        t("cordoned", "已停止调度"),
        t("an admin has closed the pool to new work", "管理员已停止向该算力池调度新任务"),
        t("uncordon the pool", "恢复该算力池的调度（uncordon）"),
    ),
    row(
        "PoolDraining",
        t("being drained", "正在排空"),
        t("an admin is draining the pool", "管理员正在排空该算力池"),
        t("uncordon the pool", "恢复该算力池的调度（uncordon）"),
    ),
    row(
        "PoolSuspect",
        t("its agent has missed heartbeats", "其代理没有按时发送心跳"),
        t("the pool's agent has missed heartbeats", "该算力池的代理没有按时发送心跳"),
        t("wait, or check the agent", "等待，或检查代理"),
    ),
    row(
        "PoolUnreachable",
        t("its agent is unreachable", "无法联系其代理"),
        t(
            "the pool's agent has missed heartbeats for longer than the timeout",
            "该算力池的代理超过时限没有发送心跳",
        ),
        t("check the agent and its connection", "检查代理及其网络连接"),
    ),
    row(
        "PoolLost",
        t("its agent has been unreachable for so long that leases expire", "其代理失联过久，租约正在到期"),
        t(
            "the pool's agent has been unreachable for so long that leases expire",
            "该算力池的代理失联过久，租约正在到期",
        ),
        t("start the agent", "启动代理"),
    ),
    row(
        "NodesCordoned",
        t("{nodes} suitable nodes are cordoned", "{nodes} 个合适的节点已停止调度"),
        t("suitable nodes are closed to new work", "合适的节点已停止调度"),
        t("uncordon a node", "恢复节点的调度（uncordon）"),
    ),
    row(
        "NodesQuarantined",
        t(
            "{nodes} suitable nodes are quarantined after repeated failures",
            "{nodes} 个合适的节点因多次失败被隔离",
        ),
        t(
            "suitable nodes are quarantined for a while, because attempts on them failed repeatedly",
            "合适的节点因其上的尝试多次失败而被暂时隔离",
        ),
        t("wait, check the nodes, or uncordon one", "等待、检查节点，或恢复其中一个（uncordon）"),
    ),
    row(
        "NodesReserved",
        t(
            "{nodes} suitable nodes are reserved for jobs ahead of this one",
            "{nodes} 个合适的节点已预留给排在前面的作业",
        ),
        t(
            "the suitable nodes are reserved for jobs that have waited longer or have a higher priority",
            "合适的节点已预留给等待更久或优先级更高的作业",
        ),
        t("wait until a node is released", "等待节点被释放"),
    ),
    row(
        "ResourcesBusy",
        t("{free} free, {needed} needed", "空闲 {free}，需要 {needed}"),
        t("the pool has too little free capacity of one resource", "该算力池某种资源的空闲量不足"),
        t("wait until running work ends", "等待正在运行的任务结束"),
    ),
    row(
        "NodeFragmentation",
        t(
            "{free} free, at most {largest} on one node, {needed} needed",
            "空闲 {free}，单个节点上最多 {largest}，需要 {needed}",
        ),
        t(
            "the pool has enough free capacity in total, but too little on each node",
            "该算力池的空闲总量足够，但分散在多个节点上，没有单个节点够用",
        ),
        t("wait, or request smaller tasks", "等待，或请求更小的任务"),
    ),
    row(
        "Fits",
        t("fits", "可以运行"),
        t("the unit fits and will be scheduled", "可以运行，即将被调度"),
        t("nothing", "无需处理"),
    ),
];

/// Why a job waits, apart from its pools.
pub const JOBS: &[Row] = &[
    row(
        "Held",
        t("held until `weir release` releases it", "已暂停调度，用 `weir release` 恢复"),
        t("a user holds the job: it starts nothing", "用户暂停了该作业的调度：不启动任何任务"),
        t("release it: `weir release job/NAME`", "恢复调度：`weir release job/NAME`"),
    ),
    row(
        "QueueLimit",
        t(
            "queue {queue} uses {used} of {limit}, {needed} more needed",
            "队列 {queue} 已使用 {used}，上限为 {limit}，还需要 {needed}",
        ),
        t("the unit would exceed a limit of its queue or of an ancestor", "会超出其队列或上级队列的上限"),
        t("wait, or raise the limit", "等待，或提高上限"),
    ),
    row(
        "DependencyPending",
        t("waits for job/{queue}/{name} to end", "等待作业 job/{queue}/{name} 结束"),
        t("a job that this one depends on has not ended", "所依赖的作业尚未结束"),
        t("wait for that job", "等待那个作业"),
    ),
    row(
        "BackingOff",
        t("waits until {until} before the next attempt", "等到 {until} 再进行下一次尝试"),
        t("an attempt failed, and the unit waits before its next one", "一次尝试失败，正在等待下一次尝试"),
        t("wait", "等待"),
    ),
    row(
        "BrokerReadOnly",
        t(
            "the broker is read-only: its journal is older than the work of its agents",
            "调度服务只读：它的日志比代理正在运行的任务旧",
        ),
        t(
            "the broker has detected that its journal is older than the work of its agents",
            "调度服务发现它的日志比代理正在运行的任务旧",
        ),
        t("restore the newer journal", "恢复较新的日志"),
    ),
    row(
        "RecoveryGracePeriod",
        t(
            "the broker has just started and waits for reports from {pools} pools, until {until}",
            "调度服务刚刚启动，正在等待 {pools} 个算力池上报，最迟到 {until}",
        ),
        t(
            "the broker has just started, and starts no work until its pools have reported what they run",
            "调度服务刚刚启动，在算力池上报正在运行的任务之前不启动新任务",
        ),
        t("wait some seconds", "等待几秒"),
    ),
];

/// Changes that would let a unit start.
pub const HELP: &[(&str, Text)] = &[
    (
        "AllowRegion",
        t("region {region} ({pool} has free capacity)", "允许地域 {region}（{pool} 有空闲资源）"),
    ),
    ("FewerDevices", t("at most {devices} devices per task", "每个任务最多请求 {devices} 张加速卡")),
    ("UncordonPool", t("pool {pool} uncordoned", "恢复算力池 {pool} 的调度")),
];
