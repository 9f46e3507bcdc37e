//! The escape between components of keys and file names.

use crate::corpus::{config, inputs, mutated};
use bucketfs::name::{
    Component, Encoded, NAME_MAX, decode, encode, encode_directory_beside, encode_file_beside,
    is_cut,
};
use proptest::prelude::*;

const CORPUS: &str = include_str!("corpus/names.txt");

type Encode = for<'a> fn(&'a [u8]) -> Encoded<'a>;
const FORMS: [Encode; 3] = [encode, encode_file_beside, encode_directory_beside];

fn names(encode: Encode, component: &[u8]) -> Vec<Vec<u8>> {
    let names = encode(component).into_names().into_iter();
    names.map(|name| name.into_owned()).collect()
}

/// Puts names together again: which form it is, and the component. Every cut is checked.
fn component(names: &[Vec<u8>]) -> Option<(usize, Vec<u8>)> {
    let mut whole = Vec::new();
    let (last, chunks) = names.split_last()?;
    let mut parts = Vec::new();
    for chunk in chunks {
        match decode(chunk)? {
            Component::Continued(part) => parts.push(part.into_owned()),
            _ => return None,
        }
    }
    let (form, part) = match decode(last)? {
        Component::Plain(part) => (0, part),
        Component::FileBeside(part) => (1, part),
        Component::DirectoryBeside(part) => (2, part),
        Component::Continued(_) => return None,
    };
    parts.push(part.into_owned());
    for (at, pair) in parts.windows(2).enumerate() {
        let beside = form != 0 && at + 2 == parts.len();
        is_cut(&pair[0], &pair[1], beside).then_some(())?;
    }
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    Some((form, whole))
}

/// Components: what the corpus has, and long ones.
fn components() -> impl Strategy<Value = Vec<u8>> {
    let corpus = || mutated(inputs(CORPUS));
    let long = (corpus(), 1..80usize, corpus()).prop_map(|(piece, times, end)| {
        let mut long = piece.repeat(times);
        long.extend(end);
        long.truncate(1024);
        long
    });
    prop_oneof![corpus(), long].prop_map(|mut component| {
        component.retain(|byte| *byte != b'/');
        component
    })
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn every_component_has_good_names_and_comes_back(bytes in components()) {
        for (form, encode) in FORMS.into_iter().enumerate() {
            let names = names(encode, &bytes);
            for name in &names {
                prop_assert!((1..=NAME_MAX).contains(&name.len()), "{} bytes", name.len());
                prop_assert!(name.as_slice() != b"." && name.as_slice() != b"..");
                prop_assert!(!name.iter().any(|byte| matches!(byte, 0 | b'/')));
                if std::str::from_utf8(&bytes).is_ok() {
                    prop_assert!(std::str::from_utf8(name).is_ok(), "{name:?}");
                }
            }
            prop_assert_eq!(component(&names), Some((form, bytes.clone())));
        }
    }

    #[test]
    fn no_two_components_share_a_name(a in components(), b in components()) {
        for (i, first) in FORMS.into_iter().enumerate() {
            for (j, second) in FORMS.into_iter().enumerate() {
                let same = names(first, &a) == names(second, &b);
                prop_assert_eq!(same, i == j && a == b);
            }
        }
    }

    /// A name that a program makes up means one component, or none.
    #[test]
    fn a_name_that_means_something_is_the_name_of_that(name in mutated(inputs(CORPUS))) {
        if let Some((form, bytes)) = component(std::slice::from_ref(&name)) {
            prop_assert_eq!(names(FORMS[form], &bytes), vec![name]);
        }
    }
}
