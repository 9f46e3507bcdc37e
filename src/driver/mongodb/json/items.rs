//! Which of a list's old items its new ones are, so that what only moved keeps its type.

use super::Json;
use ::mongodb::bson::Bson;
use std::collections::{HashMap, VecDeque};

/// Where an item comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Origin<'a> {
    /// It is this one.
    Is(&'a Bson),
    /// It looks like none, and has the place of this one, if of any.
    For(Option<&'a Bson>),
}

/// The origins of a list's items: those that both lists begin and end with, then, of what is in
/// between, the first that looks the same and is not taken. An item that looks like none follows
/// the one before it where it can, and else is for what was at its position.
pub(super) fn origins<'a>(items: &[Json], olds: &'a [Bson]) -> Vec<Origin<'a>> {
    let shown: Vec<Json> = olds.iter().map(Json::of).collect();
    let both = items.iter().zip(&shown);
    let first = both.take_while(|(item, old)| item == old).count();
    let (rest, left) = (&items[first..], &shown[first..]);
    let both = rest.iter().rev().zip(left.iter().rev());
    let last = both.take_while(|(item, old)| item == old).count();
    let (rest, left) = (&rest[..rest.len() - last], &left[..left.len() - last]);

    let mut by_text: HashMap<String, VecDeque<usize>> = HashMap::new();
    // Between two lists of which one has nothing else there is nothing to look for.
    if !rest.is_empty() {
        for (at, old) in left.iter().enumerate() {
            by_text.entry(old.spelled()).or_default().push_back(at);
        }
    }
    let mut taken = vec![false; left.len()];
    let moved: Vec<Option<usize>> = rest
        .iter()
        .map(|item| {
            let at = by_text.get_mut(&item.spelled())?.pop_front()?;
            taken[at] = true;
            Some(at)
        })
        .collect();

    let same = |at: usize| Origin::Is(&olds[at]);
    let mut origins: Vec<_> = (0..first).map(same).collect();
    let mut next = 0;
    for (at, moved) in moved.into_iter().enumerate() {
        origins.push(match moved {
            Some(at) => {
                next = at + 1;
                same(first + at)
            }
            None if taken.get(next) == Some(&false) => {
                taken[next] = true;
                next += 1;
                Origin::For(olds.get(first + next - 1))
            }
            None => Origin::For(olds.get(first + at)),
        });
    }
    origins.extend((olds.len() - last..olds.len()).map(same));
    origins
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn parse(text: &str) -> Vec<Json> {
        match Json::parse(text.as_bytes()).expect("JSON") {
            Json::Array(items) => items,
            other => panic!("{other:?} is no list"),
        }
    }

    #[test]
    fn items_are_found_where_they_went() {
        let olds: Vec<Bson> = [1_i64, 2, 3, 4].map(Bson::from).to_vec();
        let is = |at: usize| Origin::Is(&olds[at]);
        let place = |at: usize| Origin::For(Some(&olds[at]));
        for (text, wanted) in [
            ("[1,2,3,4]", vec![is(0), is(1), is(2), is(3)]),
            ("[9,1,2,3,4]", vec![place(0), is(0), is(1), is(2), is(3)]),
            ("[1,2,9,3,4]", vec![is(0), is(1), place(2), is(2), is(3)]),
            ("[2,3,4]", vec![is(1), is(2), is(3)]),
            ("[4,3,2,1]", vec![is(3), is(2), is(1), is(0)]),
            ("[1,9,8,4]", vec![is(0), place(1), place(2), is(3)]),
            ("[2,9]", vec![is(1), place(2)]),
            ("[1,1]", vec![is(0), place(1)]),
            (
                "[1,2,3,4,5]",
                vec![is(0), is(1), is(2), is(3), Origin::For(None)],
            ),
            ("[]", vec![]),
        ] {
            assert_eq!(origins(&parse(text), &olds), wanted, "{text}");
        }
        assert_eq!(origins(&parse("[1]"), &[]), [Origin::For(None)]);
    }

    #[test]
    fn a_long_list_that_is_turned_round_takes_no_longer() {
        let olds: Vec<Bson> = (0..100_000_i64).map(Bson::from).collect();
        let items: Vec<Json> = olds.iter().rev().map(Json::of).collect();
        let begun = Instant::now();
        let found = origins(&items, &olds);
        assert!(
            found
                .iter()
                .zip(olds.iter().rev())
                .all(|(a, b)| *a == Origin::Is(b))
        );
        // One by one it would take minutes.
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
