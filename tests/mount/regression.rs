//! What went wrong once, named for its cause.

use crate::harness::{PYTHON, Place, trial};
use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    vec![trial(
        &[PYTHON],
        "regression::the_release_of_a_reader_committed_a_writers_half",
        the_release_of_a_reader_committed_a_writers_half,
    )]
}

fn the_release_of_a_reader_committed_a_writers_half(place: &Place) {
    let m = place.file("m", &[]);
    std::fs::write(m.path("f"), "whole").unwrap();
    let puts = m.requests("put");
    let said = place.script(
        "
path, stored = sys.argv[1:]
fd = os.open(path, os.O_WRONLY | os.O_APPEND)
for i in range(5):
    os.write(fd, b', and more')
    assert open(path).read().endswith('more')
time.sleep(0.2)
say(open(stored).read())
os.close(fd)
say(len(open(stored).read()))
",
        &[&m.path("f"), &place.path("store/f")],
    );
    assert_eq!(said, "whole\n55");
    assert_eq!(m.requests("put"), puts + 1);
}
