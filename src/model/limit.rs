//! Every bound on what clients and agents can send or fill, in one table, each with its reason.
//!
//! At the limit, unless a constant documents otherwise: a request with a value above the limit is rejected as
//! a whole (code `Invalid`, naming the field and the limit); an object above a limit on the number of objects
//! is rejected with `LimitReached`.

// Jobs

/// Bytes of a job's display name: eighty Chinese characters.
pub const DISPLAY_NAME_LEN_MAX: usize = 240;
/// Tasks in one group. Interval sets make a large group cheap; the largest is one spec's share of the broker.
pub const TASKS_PER_GROUP_MAX: u32 = 1_000_000;
/// Ranges of indices that select tasks of a group: half of [`SPEC_BYTES_MAX`] as a record.
pub const INDEX_RANGES_MAX: usize = 32_768;
/// Tasks in one gang: a gang's attempt records each of its tasks.
pub const TASKS_PER_GANG_MAX: u32 = 4_096;
/// Task groups in one job: they are the roles of a distributed job, not a list of jobs.
pub const GROUPS_PER_JOB_MAX: usize = 16;
/// Jobs in one submit or cancel: with [`MESSAGE_BYTES_MAX`] it bounds the work of one step.
pub const JOBS_PER_SUBMIT_MAX: usize = 1_000;
/// Attempts that one cancel of units stops: each is an event of the same step. Whole jobs are cancelled without bound.
pub const UNITS_STOPPED_MAX: usize = 1_000;
/// Characters in a name: the length of a DNS label, so that every backend accepts it.
pub const NAME_LEN_MAX: usize = 63;
/// Entries of a command, its arguments, or its environment: with [`SPEC_BYTES_MAX`], which most such lists
/// reach first, it bounds the size of a spec.
pub const ARGS_MAX: usize = 4_096;
/// Bytes of one argument or environment value: the longest that Linux accepts (`MAX_ARG_STRLEN`).
pub const ARG_LEN_MAX: usize = 131_071;
/// Bytes of a native Kubernetes pod spec in JSON: a third of [`SPEC_BYTES_MAX`].
pub const POD_SPEC_LEN_MAX: usize = 65_536;
/// Bytes of one job spec as a record: the start order of a full gang then fits into one message.
pub const SPEC_BYTES_MAX: usize = 192 * 1024;
/// Entries in one constraint list (regions, pools, device models, labels, tolerations): the scheduler
/// compares each with every pool or class of nodes.
pub const CONSTRAINT_LIST_MAX: usize = 64;
/// Jobs that one job may depend on. For more, insert a job that depends on them.
pub const DEPENDENCIES_MAX: usize = 64;
/// Live jobs that may depend on one job: its end releases all of them in one step. For more, insert jobs that depend on
/// it, or use one job of many tasks.
pub const DEPENDENTS_MAX: usize = 10_000;
/// Largest `retry.max_attempts`: a unit that has failed so often does not succeed. Evictions don't count
/// towards it.
pub const ATTEMPTS_MAX: u32 = 100;
/// Default of `retry.max_node_losses`: a task that takes down each machine on which it runs reaches few of them,
/// and machines fail rarely enough that other tasks don't reach it.
pub const NODE_LOSSES_DEFAULT: u32 = 3;
/// Largest `retry.max_node_losses`.
pub const NODE_LOSSES_MAX: u32 = 1_000;
/// Longest run-time limit, back-off or deadline, in milliseconds (366 days): later instants can't overflow.
pub const DURATION_MS_MAX: u64 = 366 * 24 * 3_600 * 1_000;
/// Longest grace from the termination signal to the kill signal, in milliseconds (an hour): a stop must end.
pub const GRACE_MS_MAX: u64 = 3_600 * 1_000;
/// Largest epoch that an agent may report: all later ones of its pool fit in 64 bits.
pub const EPOCH_MAX: u64 = 1 << 62;
/// Shortest and longest lease, in milliseconds. A shorter one would end when a broker restarts.
pub const LEASE_MS_MIN: u64 = 20_000;
pub const LEASE_MS_MAX: u64 = 24 * 3_600 * 1_000;
/// The lease where neither job nor queue sets one: longer than a broker's restart on a new machine.
pub const LEASE_MS_DEFAULT: u64 = 300_000;
/// Largest absolute value of a priority: enough levels for any scheme, within 32 bits.
pub const PRIORITY_MAX: i32 = 1_000_000;

// Amounts

/// CPU that one task may request, in millicores (1,000 cores): larger values are mistyped units.
pub const CPU_MILLIS_MAX: u64 = 1_000_000;
/// Memory or storage that one task may request, and memory of one node, in bytes (1 PiB): larger values are
/// mistyped units.
pub const BYTES_MAX: u64 = 1 << 50;
/// Whole devices that one task may request: more than usual nodes have.
pub const DEVICES_PER_TASK_MAX: u32 = 64;
/// Thousandths in one device: the unit in which shares of devices are counted. A definition, not a bound.
pub const DEVICE_MILLIS: u32 = 1_000;

// Queues, pools and nodes

/// Segments of a queue's path: municipality, district, township, team, and some to spare.
pub const QUEUE_DEPTH_MAX: usize = 8;
/// Queues in all: each placement checks the limits of a queue and its ancestors.
pub const QUEUES_MAX: usize = 10_000;
/// Labels on one object, and similar lists of short texts: together they stay within some kilobytes.
pub const LABELS_MAX: usize = 64;
/// Entries of each list in a filter of jobs: a filter is evaluated for every job that a page looks at.
pub const FILTER_ENTRIES_MAX: usize = 64;
/// Groups in a count of jobs: more are no overview any more, and a label may have a value of its own in each job.
pub const COUNT_GROUPS_MAX: usize = 10_000;
/// Bytes in a label's key or value: the length of a DNS name.
pub const LABEL_LEN_MAX: usize = 253;
/// CPU of one node, in millicores (10,000 cores): ten times the largest task.
pub const NODE_CPU_MILLIS_MAX: u64 = 10 * CPU_MILLIS_MAX;
/// Storage of one node, in bytes (16 PiB): storage of a node outgrows its memory.
pub const NODE_STORAGE_BYTES_MAX: u64 = 16 * BYTES_MAX;
/// Devices on one node: four times the largest task.
pub const DEVICES_PER_NODE_MAX: usize = 256;
/// Nodes in one pool: as many as the largest measured cluster has in all (`docs/internals/performance.md`).
pub const NODES_PER_POOL_MAX: usize = 100_000;
/// Bytes of memory that one pool and its nodes may take: [`NODES_PER_POOL_MAX`] nodes with usual labels and devices.
pub const POOL_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Pools of one broker: each has a session, and `why` lists every one of them.
pub const POOLS_MAX: usize = 10_000;
/// Nodes of a pool for which a defragmentation plan is computed: one step reads the pool's state. A plan for
/// a larger pool is refused (`FAILED_PRECONDITION`).
pub const DEFRAG_NODES_MAX: u32 = 10_000;
/// Moves in one defragmentation plan: a longer plan would be outdated before it is carried out.
pub const DEFRAG_MOVES_MAX: u32 = 10_000;
/// Moves in one defragmentation plan if the caller gives no number.
pub const DEFRAG_MOVES_DEFAULT: u32 = 100;

// Prices, links and reservations

/// Rates in one price schedule: kinds, times device models, times parts of the day.
pub const RATES_MAX: usize = 256;
/// Versions of one pool's prices: one change a day for eleven years.
pub const PRICES_PER_POOL_MAX: usize = 4_096;
/// Price of one unit and hour, or of 10^9 bytes, in millionths of the currency (10^12 of the currency): above
/// any price, within 64 bits.
pub const MICROS_MAX: u64 = 1_000_000_000_000_000_000;
/// Bandwidth of a link, in bits per second (1 Pbit/s): larger values are mistyped units.
pub const LINK_BITS_PER_S_MAX: u64 = 1_000_000_000_000_000;
/// Round trip of a link, in microseconds (a minute): larger values are mistyped units.
pub const LINK_ROUND_TRIP_MICROS_MAX: u32 = 60_000_000;
/// Reservations at one time: an admin creates each of them, so more are a script's error.
pub const RESERVATIONS_MAX: usize = 10_000;

// Scheduling

/// Largest distance, in jobs by order of submission, over which a later job may overtake a waiting one: it
/// bounds starvation. With an eighth of this distance, trials on the openb trace lost most of the gain of
/// choosing.
pub const OVERTAKING_JOBS_MAX: u64 = 8_000;
/// Largest difference of submission times, in milliseconds, over which a later job may overtake a waiting
/// one.
pub const OVERTAKING_AGE_MS_MAX: u64 = 60 * 1_000;
/// Most waiting units of a job that may overtake. A job with more does not: each of its units would overtake
/// once more.
pub const OVERTAKING_UNITS_MAX: u32 = 1_000;
/// Shortest wait, in milliseconds, before a node is reserved for a class of tasks.
pub const RESERVATION_WAIT_MS_MIN: u64 = 10 * 60 * 1_000;
/// Nodes of a cluster per reserved node, rounded: one in 400 nodes is reserved at a time, none in clusters of
/// less than 200. It bounds the capacity that stays idle.
pub const NODES_PER_RESERVED_NODE: usize = 400;
/// Demands in one workload profile: the ones that matter in any mix. The scheduler selects those with the
/// most devices, weighted by frequency.
pub const PROFILE_ENTRIES_MAX: usize = 256;

// Agents

/// Nodes, removed nodes or reports in one message of an agent, because each message must be a short step. An
/// agent sends a larger set in chunks.
pub const ENTRIES_PER_MESSAGE_MAX: usize = 16_384;
/// Stops in one message to an agent; more are sent in several messages. Far below [`MESSAGE_BYTES_MAX`].
pub const STOPS_PER_MESSAGE_MAX: usize = 1_024;
/// Bytes, estimated, at which a list sent to an agent or a watcher is cut into several messages.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Bytes of free text stored from an agent. A longer outcome message is truncated, a longer note is rejected.
pub const MESSAGE_LEN_MAX: usize = 1_024;
/// Specs that a session caches. Both ends drop the oldest at the same message, so they agree on the rest.
pub const SESSION_SPECS_MAX: usize = 1_024;

// Requests and clients

/// Bytes of a request token: a UUID in any notation, with a prefix.
pub const TOKEN_LEN_MAX: usize = 128;
/// Shortest time that a request token is stored, in milliseconds; an older one is rejected (`TokenExpired`).
/// Clients repeat a request within seconds. A broker that starts, or resumes from a suspension, stores all of
/// its tokens for as long again.
pub const TOKEN_RETENTION_MS: u64 = 15 * 60 * 1_000;
/// Objects in one page of a list: it bounds the work of one query.
pub const PAGE_MAX: usize = 1_000;
/// Bytes of one page of a list: a page of jobs with large specs has fewer jobs.
pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Objects in one page of a list if the caller gives no size.
pub const PAGE_DEFAULT: usize = 100;
/// Bytes of one request: a full submit of ordinary jobs. The transport rejects a larger one.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Mutations per second from one client, unless the broker is configured otherwise. Far above what a client
/// can send that waits for its answers. Above it, a request is refused with the time to wait.
pub const MUTATIONS_PER_S_DEFAULT: u32 = 20_000;
/// Mutations of one client that wait in the admission queue; a further one is refused with the time to wait.
pub const MUTATIONS_WAITING_MAX: usize = 256;
/// Weight of a mutation besides one for each of its jobs: it costs about as much as 8 jobs.
pub const MUTATION_WEIGHT: usize = 8;
/// Weight of the mutations that the broker processes at once; further ones wait in the admission queue. A
/// mutation waits at most for these and for one mutation of each other waiting client: a tenth of a second.
/// It is the weight of four of the largest submits, or of 500 small ones, which is more than one write to the
/// disk takes.
pub const MUTATIONS_WEIGHT_MAX: usize = 4_096;
/// Messages and list entries within one request: a hundred for each of a thousand jobs. A larger request is
/// rejected before it is decoded.
pub const REQUEST_ENTRIES_MAX: usize = 100_000;
/// Bytes of memory accounted for each of them: the size of the largest, with space to grow.
pub const ENTRY_BYTES: usize = 512;
/// Bytes of memory of each request that are not accounted to its client: small in total, even if a client
/// uses all of its streams.
pub const REQUEST_BYTES_FREE: usize = 64 * 1024;
/// Bytes of memory beyond those for the concurrent requests of one client: enough for the largest request and
/// some others. Above it, a request is refused with the time to wait.
pub const REQUEST_BYTES_HELD_MAX: usize = 64 * 1024 * 1024;
/// Bytes of memory beyond those for the concurrent requests of all clients. Above it, a request is refused
/// with the time to wait.
pub const REQUESTS_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Pages that one client's requests are answered with at once, and those of all clients: the others wait for their turn.
pub const PAGES_AT_ONCE_MAX: usize = 4;
pub const RESPONSES_AT_ONCE_MAX: usize = 32;
/// Bytes of responses that one client, and all clients, may leave unread. Above it, a response is refused with the time
/// to wait.
pub const RESPONSE_BYTES_HELD_MAX: usize = 16 * 1024 * 1024;
pub const RESPONSES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Unread messages of all watches and logs of one client; its streams then wait for it. Times the size of a
/// message, this is the memory that a client without reads costs, however many streams it opens.
pub const STREAM_MESSAGES_MAX: usize = 32;
/// Connections at once: one for each agent and each client; fewer if the system allows the broker fewer
/// files. Further clients wait in the listener's backlog, and the oldest unauthenticated connection is
/// closed.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Changes stored for watchers that reconnect; the oldest are dropped. A watcher that missed a dropped change
/// receives the full list again.
pub const WATCH_BACKLOG_MAX: usize = 65_536;
/// Pieces of output with a time in one part of a log: their times take no more than the part's data.
pub const OUTPUT_TIMES_MAX: usize = 4_096;
