//! Requests per operation on S3, as the budget in the design has them: through a real mount, over
//! HTTP, to a server with every condition that Amazon documents. Each row is a fresh mount.
//!
//! `cargo test --test requests -- serve PORT` serves such a store, for scripts.

// The attributes by which clippy knows tests are those of the standard harness.
#![allow(clippy::unwrap_used)]

#[path = "requests/attributes.rs"]
mod attributes;
#[path = "mount/guard.rs"]
mod guard;
#[path = "mount/harness.rs"]
#[expect(dead_code, reason = "the tests in mount.rs use the rest")]
mod harness;
#[path = "requests/http.rs"]
mod http;
#[path = "requests/programs.rs"]
mod programs;
#[path = "requests/rows.rs"]
mod rows;
#[path = "requests/store.rs"]
mod store;
#[path = "requests/world.rs"]
mod world;

use libtest_mimic::Arguments;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [serve, port] = &words[..]
        && serve == "serve"
    {
        let _server = http::Server::start(port.parse().unwrap()).unwrap();
        loop {
            std::thread::park();
        }
    }
    let mut arguments = Arguments::from_args();
    // A process that is started closes what others have open, which commits it.
    arguments.test_threads = arguments.test_threads.or(Some(1));
    let mut trials = rows::trials();
    trials.extend(programs::trials());
    trials.extend(attributes::trials());
    let conclusion = libtest_mimic::run(&arguments, trials);
    guard::finish();
    conclusion.exit()
}
