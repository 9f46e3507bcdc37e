//! Documents of servers of every style, whole, cut, changed and of other kinds. A page that is
//! taken is the page that was meant: never a shorter one.

use super::*;
use crate::driver::s3::corpus::{config, inputs, mutated};
use proptest::prelude::*;
use proptest::sample::Index;

const CORPUS: &str = include_str!("../../../../tests/fuzz/corpus/documents.txt");

/// An entry as a server has it: a key, and for an object etag, size and a time in milliseconds.
type Entry = (String, Option<(String, u64, u64)>);

#[derive(Clone, Debug)]
struct Listing {
    entries: Vec<Entry>,
    next: Option<String>,
}

/// How a server writes: with `encoding-type=url`, with CDATA, with references for characters, with
/// white space and comments between elements, with a prefix of the namespace, elements backwards.
#[derive(Clone, Copy, Debug)]
struct Style {
    escaped: bool,
    cdata: bool,
    references: bool,
    pretty: bool,
    prefixed: bool,
    backwards: bool,
}

fn keys() -> impl Strategy<Value = String> {
    // What XML cannot say plainly comes with encoding-type=url only, as from real servers.
    prop_oneof!["[a-c/<>&'\"% +]{1,6}", "\\PC{1,8}", "p/%~[ -~]{0,4}]]>"]
}

fn listings() -> impl Strategy<Value = Listing> {
    let object = ("[0-9a-f]{1,8}", any::<u64>(), 0..4_102_444_800_000u64);
    let entry = (keys(), proptest::option::of(object));
    let entries = proptest::collection::btree_map(entry.0, entry.1, 0..6);
    (entries, proptest::option::of("[!-~]{1,9}")).prop_map(|(entries, next)| Listing {
        entries: entries.into_iter().collect(),
        next,
    })
}

fn styles() -> impl Strategy<Value = Style> {
    any::<[bool; 6]>().prop_map(
        |[escaped, cdata, references, pretty, prefixed, backwards]| Style {
            escaped,
            cdata,
            references,
            pretty,
            prefixed,
            backwards,
        },
    )
}

impl Style {
    fn text(self, text: &str) -> String {
        if self.cdata {
            return format!("<![CDATA[{}]]>", text.replace("]]>", "]]]]><![CDATA[>"));
        }
        let mut written = String::new();
        for c in text.chars() {
            match c {
                _ if self.references => written.push_str(&format!("&#x{:x};", u32::from(c))),
                '<' => written.push_str("&lt;"),
                '>' => written.push_str("&gt;"),
                '&' => written.push_str("&amp;"),
                '"' => written.push_str("&quot;"),
                '\'' => written.push_str("&apos;"),
                c => written.push(c),
            }
        }
        written
    }

    fn key(self, key: &str) -> String {
        match self.escaped {
            true => {
                let escaped = percent_encoding::percent_encode(
                    key.as_bytes(),
                    percent_encoding::NON_ALPHANUMERIC,
                );
                self.text(&escaped.to_string().replace("%20", "+"))
            }
            false => self.text(key),
        }
    }

    fn element(self, name: &str, parts: Vec<String>) -> String {
        let name = match self.prefixed {
            true => format!("s3:{name}"),
            false => name.to_owned(),
        };
        format!("<{name}>{}</{name}>", self.join(parts))
    }

    fn join(self, mut parts: Vec<String>) -> String {
        if self.backwards {
            parts.reverse();
        }
        match self.pretty && parts.len() > 1 {
            true => format!("\n  {}\n", parts.join("\n  <!-- next -->")),
            false => parts.concat(),
        }
    }

    fn leaf(self, name: &str, text: String) -> String {
        self.element(name, vec![text])
    }

    fn document(self, listing: &Listing) -> String {
        let mut parts = vec![
            self.leaf("Name", "b".into()),
            self.leaf("IsTruncated", listing.next.is_some().to_string()),
        ];
        if self.escaped {
            parts.push(self.leaf("EncodingType", "url".into()));
        }
        if let Some(next) = &listing.next {
            parts.push(self.leaf("NextContinuationToken", self.text(next)));
        }
        for (key, object) in &listing.entries {
            parts.push(match object {
                Some((etag, size, time)) => {
                    let time = UNIX_EPOCH + Duration::from_millis(*time);
                    let contents = vec![
                        self.leaf("Key", self.key(key)),
                        self.leaf("LastModified", crate::logging::timestamp(time)),
                        self.leaf("ETag", self.text(&format!("\"{etag}\""))),
                        self.leaf("Size", size.to_string()),
                        self.element("Owner", vec![self.leaf("ID", "Key".into())]),
                    ];
                    self.element("Contents", contents)
                }
                None => self.element("CommonPrefixes", vec![self.leaf("Prefix", self.key(key))]),
            });
        }
        let root = match self.prefixed {
            true => "s3:ListBucketResult xmlns:s3=\"http://s3.amazonaws.com/doc/2006-03-01/\"",
            false => "ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"",
        };
        let end = root.split(' ').next().unwrap_or_default();
        let inner = self.join(parts);
        format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{root}>{inner}</{end}>")
    }
}

/// The page that a listing stands for.
fn meant(listing: &Listing) -> Page {
    let mut entries: Vec<_> = listing
        .entries
        .iter()
        .map(|(key, object)| ListEntry {
            key: Key::from(key.as_str()),
            object: object.as_ref().map(|(etag, size, time)| ObjectInfo {
                size: Some(*size),
                etag: ETag::new(etag.as_str()),
                // What is less than a second is not told by headers.
                modified: UNIX_EPOCH + Duration::from_secs(*time / 1000),
                attributes: None,
                commits: Vec::new(),
                version: None,
            }),
        })
        .collect();
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    Page {
        entries,
        next: listing.next.clone(),
    }
}

fn is_corrupt<T>(result: Result<T>) -> bool {
    result.err().map(|error| error.kind()) == Some(ErrorKind::Corrupt)
}

proptest! {
    #![proptest_config(config(1000))]

    #[test]
    fn a_page_is_read_as_it_was_meant_whatever_its_style(listing in listings(), style in styles()) {
        let document = style.document(&listing);
        prop_assert_eq!(page(document.as_bytes()).unwrap(), meant(&listing), "{}", document);
        prop_assert_eq!(complaint(document.as_bytes()), None);
    }

    #[test]
    fn a_page_that_is_cut_is_none(listing in listings(), style in styles(), at in any::<Index>()) {
        let document = style.document(&listing);
        prop_assert!(is_corrupt(page(&document.as_bytes()[..at.index(document.len())])));
    }

    /// An element that is lost takes the whole page with it, or changes nothing that is told.
    #[test]
    fn a_page_that_lost_a_part_is_never_shorter(listing in listings(), pretty in any::<bool>(), backwards in any::<bool>(), which in any::<Index>()) {
        let style = Style {
            escaped: false,
            cdata: false,
            references: false,
            pretty,
            prefixed: false,
            backwards,
        };
        let document = style.document(&listing);
        let names = ["Key", "ETag", "Size", "LastModified", "Prefix", "NextContinuationToken", "IsTruncated"];
        let starts: Vec<_> = names
            .iter()
            .flat_map(|name| {
                let open = format!("<{name}>");
                let found: Vec<_> = document.match_indices(&open).map(|(at, _)| (at, *name)).collect();
                found
            })
            .collect();
        let (start, name) = starts[which.index(starts.len())];
        let close = format!("</{name}>");
        let end = start + document[start..].find(&close).unwrap() + close.len();
        let lost = format!("{}{}", &document[..start], &document[end..]);
        match page(lost.as_bytes()) {
            Ok(page) => prop_assert_eq!(page, meant(&listing), "without {}", name),
            Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Corrupt),
        }
    }

    #[test]
    fn no_document_is_too_strange(document in mutated(inputs(CORPUS))) {
        let listed = page(&document);
        if let Ok(page) = &listed {
            prop_assert!(page.entries.is_sorted_by(|a, b| a.key <= b.key));
            prop_assert!(page.entries.iter().all(|entry| !entry.key.is_empty()));
            prop_assert!(page.next.as_ref().is_none_or(|next| !next.is_empty()));
            // Entries that are there are told.
            let text = String::from_utf8_lossy(&document).into_owned();
            let plain = !text.contains("<!") && !text.contains("<?") && !text.contains(':');
            if plain {
                let there = text.matches("</Contents>").count() + text.matches("</CommonPrefixes>").count();
                prop_assert!(page.entries.len() >= there, "{} of {}", page.entries.len(), there);
            }
        }
        let roots = [
            listed.is_ok(),
            complaint(&document).is_some(),
            undeleted(&document).is_ok(),
            buckets(&document).is_ok(),
        ];
        prop_assert!(roots.iter().filter(|is| **is).count() <= 1, "one document is one thing: {:?}", roots);
        if let Ok(failed) = undeleted(&document) {
            prop_assert!(failed.iter().all(|(key, _)| !key.is_empty()));
        }
        let _ = copied(&document);
    }

    #[test]
    fn keys_reach_a_document_unchanged(keys in proptest::collection::vec(keys(), 0..5)) {
        let keys: Vec<Key> = keys.into_iter().map(Key::from).filter(expressible).collect();
        let mut told = Vec::new();
        let removals: Vec<Removal> = keys.iter().cloned().map(Removal::from).collect();
        read(delete(removals.iter()).as_bytes(), &["Delete"], |node| {
            if let Node::Leaf(b"Object", b"Key", text) = node {
                told.push(Key::from(text.as_str()));
            }
            Ok(())
        })
        .unwrap();
        prop_assert_eq!(told, keys);
    }

    #[test]
    fn etags_lose_their_quotes_only(tag in "[!#-~]{1,12}") {
        prop_assume!(!tag.starts_with("W/"));
        for form in [tag.clone(), format!("\"{tag}\""), format!("W/\"{tag}\""), format!(" \"{tag}\" ")] {
            prop_assert_eq!(etag(&form).map(|etag| etag.as_str().to_owned()), Some(tag.clone()));
        }
    }

    #[test]
    fn times_come_back_in_seconds(milliseconds in 0..253_402_300_800_000u64) {
        let moment = UNIX_EPOCH + Duration::from_millis(milliseconds);
        let seconds = UNIX_EPOCH + Duration::from_secs(milliseconds / 1000);
        prop_assert_eq!(time(&crate::logging::timestamp(moment)), Some(seconds));
    }
}
