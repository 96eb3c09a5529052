//! Every bound on what the world can send or fill, in one table, each with its reason.

/// Tasks in one group: what one spec may ask for; intervals keep it cheap.
pub const TASKS_PER_GROUP_MAX: u32 = 1_000_000;
/// Tasks in one gang: a gang's attempt records each of its tasks.
pub const TASKS_PER_GANG_MAX: u32 = 4_096;
/// Task groups in one job: roles of a distributed job, not a list of jobs.
pub const GROUPS_PER_JOB_MAX: usize = 16;
/// Jobs in one submit: with `MESSAGE_BYTES_MAX` it bounds one step's work.
pub const JOBS_PER_SUBMIT_MAX: usize = 1_000;
/// Characters in a name: a DNS label, so that every backend takes it.
pub const NAME_LEN_MAX: usize = 63;
/// Segments of a queue's path: municipality, district, township, team, and room.
pub const QUEUE_DEPTH_MAX: usize = 8;
/// Queues in all: they are checked level by level on each placement.
pub const QUEUES_MAX: usize = 10_000;
/// Labels on one object.
pub const LABELS_MAX: usize = 64;
/// Bytes in a label's key or value.
pub const LABEL_LEN_MAX: usize = 253;
/// Entries of a command, its arguments, or its environment.
pub const ARGS_MAX: usize = 4_096;
/// Bytes of a native description of a pod.
pub const POD_SPEC_LEN_MAX: usize = 65_536;
/// Bytes of one argument or environment value: what Linux takes (`MAX_ARG_STRLEN`).
pub const ARG_LEN_MAX: usize = 131_071;
/// Bytes of one job spec as a record: keeps a full order within one message.
pub const SPEC_BYTES_MAX: usize = 192 * 1024;
/// Regions, pools, models, labels or tolerations in one constraint list.
pub const CONSTRAINT_LIST_MAX: usize = 64;
/// CPU one task may ask for, in millicores (1,000 cores).
pub const CPU_MILLIS_MAX: u64 = 1_000_000;
/// Memory or storage one task may ask for, in bytes (1 PiB).
pub const BYTES_MAX: u64 = 1 << 50;
/// Whole devices one task may ask for.
pub const DEVICES_PER_TASK_MAX: u32 = 64;
/// Thousandths in one device.
pub const DEVICE_MILLIS: u32 = 1_000;
/// CPU of one node, in millicores (10,000 cores).
pub const NODE_CPU_MILLIS_MAX: u64 = 10 * CPU_MILLIS_MAX;
/// Storage of one node, in bytes (16 PiB).
pub const NODE_STORAGE_BYTES_MAX: u64 = 16 * BYTES_MAX;
/// Devices on one node.
pub const DEVICES_PER_NODE_MAX: usize = 256;
/// Nodes in one pool.
pub const NODES_PER_POOL_MAX: usize = 100_000;
/// Nodes of a pool for which it is planned how to defragment it: its state is read in one step.
pub const DEFRAG_NODES_MAX: u32 = 10_000;
/// Moves in one plan to defragment a pool: more than anyone carries out before the pool is another.
pub const DEFRAG_MOVES_MAX: u32 = 10_000;
/// Moves in one such plan when the caller names no number.
pub const DEFRAG_MOVES_DEFAULT: u32 = 100;
/// Pools of one broker.
pub const POOLS_MAX: usize = 10_000;
/// Attempts of one unit before it fails whatever the job asks.
pub const ATTEMPTS_MAX: u32 = 100;
/// Longest run, back-off or limit in a spec, in milliseconds (366 days).
pub const DURATION_MS_MAX: u64 = 366 * 24 * 3_600 * 1_000;
/// Rates in one price schedule: kinds by models by times of day.
pub const RATES_MAX: usize = 256;
/// Versions of one pool's prices: a change a day for years.
pub const PRICES_PER_POOL_MAX: usize = 4_096;
/// Price of a unit and hour, in micro-currency (10^12 whole units): sums over years stay in 64 bits.
pub const MICROS_MAX: u64 = 1_000_000_000_000_000_000;
/// Bandwidth of a link, in bits per second (1 Pbit/s).
pub const LINK_BITS_PER_S_MAX: u64 = 1_000_000_000_000_000;
/// Round trip of a link, in microseconds (a minute).
pub const LINK_ROUND_TRIP_MICROS_MAX: u32 = 60_000_000;
/// Reservations at one time.
pub const RESERVATIONS_MAX: usize = 10_000;
/// Longest grace from the polite signal to the hard one, in milliseconds (an hour).
pub const GRACE_MS_MAX: u64 = 3_600 * 1_000;
/// Jobs that one job may wait for.
pub const DEPENDENCIES_MAX: usize = 64;
/// Bytes of a request token.
pub const TOKEN_LEN_MAX: usize = 128;
/// A waiting job is passed over by none that comes more than so many jobs after it. Trials on the openb
/// trace lost most of what choosing gains with an eighth of that.
pub const PASSES_MAX: u64 = 8_000;
/// A waiting job is passed over by none that was submitted more than this later, in milliseconds.
pub const PASSES_AGE_MS_MAX: u64 = 60 * 1_000;
/// A job with more waiting units passes nobody over: its units would be as many passes.
pub const PASSING_UNITS_MAX: u32 = 1_000;
/// Nobody gets a node kept who has waited less than this, in milliseconds.
pub const RESERVATION_WAIT_MS_MIN: u64 = 10 * 60 * 1_000;
/// One of so many nodes is kept at a time, at most, rounded: none in clusters of less than half as many.
pub const RESERVATION_ONE_OF: usize = 400;
/// Kinds of tasks in one lesson: what matters of any mix.
pub const PROFILE_ENTRIES_MAX: usize = 256;
/// How long a request token is remembered at the least, in milliseconds: clients repeat within seconds.
/// A broker that starts, or wakes, remembers all that it has for as long again.
pub const TOKEN_RETENTION_MS: u64 = 15 * 60 * 1_000;
/// Priorities lie within plus and minus this.
pub const PRIORITY_MAX: i32 = 1_000_000;
/// Nodes, removed nodes or reports in one message of an agent: it sends what does not fit into a
/// chunk in several, and each must be a short step.
pub const ENTRIES_PER_MESSAGE_MAX: usize = 16_384;
/// Stops in one message to an agent: far below what a message may hold.
pub const STOPS_PER_MESSAGE_MAX: usize = 1_024;
/// Bytes of one message between broker and agent before it is cut into chunks.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Objects in one page of a list, at most.
pub const PAGE_MAX: usize = 1_000;
/// Bytes of one page of a list: jobs with large specs make pages of fewer jobs.
pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Objects in one page of a list when the caller names no size.
pub const PAGE_DEFAULT: usize = 100;
/// Bytes of one request: a full batch of ordinary jobs, far below what would hurt.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Mutations in a second from one client, unless the broker is told otherwise: far above what one that
/// waits for its answers can send, so that it only bites who doesn't.
pub const MUTATIONS_PER_S_DEFAULT: u32 = 20_000;
/// Mutations of one client that wait for their turn: a client that has more under way is refused, and
/// told to come again.
pub const MUTATIONS_WAITING_MAX: usize = 256;
/// What a mutation weighs besides its jobs: about as much as so many of them.
pub const MUTATION_WEIGHT: usize = 8;
/// Weight of the mutations that the broker has at once. Whoever comes next waits for these at the most
/// and for one of each client that waits, too: a tenth of a second. It is four of the largest submits,
/// or five hundred small ones, which is more than one write to the disk takes.
pub const MUTATIONS_WEIGHT_MAX: usize = 4_096;
/// Messages and entries of lists within one request: a hundred for each of a thousand jobs.
pub const REQUEST_ENTRIES_MAX: usize = 100_000;
/// Bytes in memory that each of those is taken to become: of the largest, with room to grow.
pub const ENTRY_BYTES: usize = 512;
/// Bytes that a request may become without counting against its client's share: as many as a client
/// has streams can't hurt.
pub const REQUEST_BYTES_FREE: usize = 64 * 1024;
/// Bytes beyond those that the requests of one client may become at once: the largest, and some.
pub const REQUEST_BYTES_HELD_MAX: usize = 64 * 1024 * 1024;
/// Bytes beyond those that all requests may become at once.
pub const REQUESTS_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Messages of one client's watches and logs that wait to be read: with the size of one this is what a
/// client costs that reads nothing, however many streams it opens.
pub const STREAM_MESSAGES_MAX: usize = 32;
/// Connections at once: one for each agent and each client. Fewer where the system lets the broker
/// have fewer files.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Bytes of free text kept from an agent: messages, notes.
pub const MESSAGE_LEN_MAX: usize = 1_024;
/// Changes kept for watchers that come back after a break.
pub const WATCH_BACKLOG_MAX: usize = 65_536;
/// Specs that a session remembers as sent; both ends forget the oldest in step.
pub const SESSION_SPECS_MAX: usize = 1_024;
