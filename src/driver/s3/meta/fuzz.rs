//! Headers of every kind, and metadata that has to come back through them.

use super::*;
use crate::driver::s3::corpus::{config, inputs, mutated};
use bytes::Bytes;
use proptest::prelude::*;

const CORPUS: &str = include_str!("../../../../tests/fuzz/corpus/headers.txt");

/// The headers of an answer from lines of the corpus; what is no header is left out.
fn headers(lines: &[Vec<u8>]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(line[..colon].trim_ascii());
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn no_header_is_too_strange(lines in proptest::collection::vec(mutated(inputs(CORPUS)), 0..8)) {
        let headers = headers(&lines);
        match info(&headers, &Key::from("k"), None) {
            Ok(info) => prop_assert!(!info.etag.as_str().is_empty() && info.attributes.is_some()),
            Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Corrupt),
        }
        if let Some((first, end, size)) = content_range(&headers) {
            prop_assert!(first < end && size.is_none_or(|size| end <= size));
        }
        let _ = (length(&headers), date(&headers), written(&headers));
    }

    #[test]
    fn ranges_come_back(first in any::<u32>(), length in 1..=u32::MAX, rest in proptest::option::of(any::<u32>())) {
        let (first, end) = (u64::from(first), u64::from(first) + u64::from(length));
        let size = rest.map(|rest| end + u64::from(rest));
        let shown = size.map_or("*".to_owned(), |size| size.to_string());
        let line = format!("content-range: bytes {first}-{}/{shown}", end - 1);
        prop_assert_eq!(content_range(&headers(&[line.into_bytes()])), Some((first, end, size)));
    }

    #[test]
    fn metadata_of_any_bytes_comes_back(
        user in proptest::collection::btree_map("[a-z][a-z0-9-]{0,6}", proptest::collection::vec(any::<u8>(), 0..20), 0..4),
        texts in proptest::collection::btree_map("t[a-z]{1,4}", mutated(inputs(CORPUS)), 0..3),
        commits in proptest::collection::vec(any::<u64>(), 0..8),
    ) {
        let user: std::collections::BTreeMap<_, Bytes> = user
            .into_iter()
            .chain(texts)
            .filter(|(name, _)| format!("{META}{name}") != COMMITS)
            .map(|(name, value)| (name, value.into()))
            .collect();
        let headers = user.keys().filter(|name| name.len() % 2 == 0);
        let headers = headers.map(|name| (format!("{META}{name}"), String::new())).collect();
        let attributes = Attributes { user, headers, ..Attributes::default() };
        let commits: Vec<_> = commits.into_iter().map(CommitId).collect();
        let mut sent = HeaderMap::new();
        describe(&mut sent, &Key::from("k"), &attributes, &commits).unwrap();
        for value in sent.values() {
            prop_assert!(value.to_str().is_ok(), "{:?} is no plain text", value);
        }
        sent.insert(ETAG, HeaderValue::from_static("\"e\""));
        sent.insert(LAST_MODIFIED, HeaderValue::from_static("Mon, 12 Oct 2009 17:50:00 GMT"));
        let told = info(&sent, &Key::from("k"), None).unwrap();
        prop_assert_eq!(told.told_attributes().user, attributes.user);
        prop_assert_eq!(told.commits, commits);
    }
}
