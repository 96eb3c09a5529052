# What people repeat; `just` lists it. Everything here is plain cargo, so `just` is optional.

_default:
    @just --list

# Type-check everything.
check:
    cargo check --workspace --all-targets

# The fast tests: everything without an outside program.
test *args:
    cargo test --workspace {{args}}

# One simulator seed, with its trace.
seed number:
    cargo run --profile sim -p simulator -- replay {{number}}

# Many simulator seeds.
sweep seeds="1000":
    cargo run --profile sim -p simulator -- sweep --seeds {{seeds}}

# Deliberate faults in the kernel, each of which a sweep must find.
mutants *args:
    cargo run --profile sim -p simulator --no-default-features --features mutants -- mutants {{args}}

# Format, lints, docs, licences: what CI checks before the tests.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
    cargo deny check licenses bans sources

# Regenerate files that tests compare with the code.
expect:
    UPDATE_EXPECT=1 cargo test --workspace

# All that CI does.
ci:
    .ci/run
