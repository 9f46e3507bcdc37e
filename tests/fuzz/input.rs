//! What a user writes: URLs, options wherever they are set, and specifications of faults.

use crate::corpus::{config, inputs, mutated};
use bucketfs::config::options::{OPTIONS, OptionSpec};
use bucketfs::config::{Flags, Settings, Sources, fstab, resolve};
use bucketfs::driver::{DRIVERS, ErrorKind, Location};
use bucketfs::exit::{Exit, Failure};
use bucketfs::layer::FaultPlan;
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::BTreeMap;

const URLS: &str = include_str!("corpus/urls.txt");
const LISTS: &str = include_str!("corpus/options.txt");
const FILES: &str = include_str!("corpus/configurations.txt");
const FAULTS: &str = include_str!("corpus/faults.txt");
/// A password that no grammar here makes otherwise.
const PASSWORD: &str = "Sup3rGeheim";

/// An input of the corpus after a few edits, as text.
fn mutated_text(inputs: Vec<Vec<u8>>) -> impl Strategy<Value = String> {
    mutated(inputs).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// One line without control characters that says something.
fn is_line(text: &str) -> bool {
    !text.trim().is_empty() && !text.chars().any(char::is_control)
}

fn is_usage(failure: &Failure) -> bool {
    failure.exit == Exit::Usage && is_line(&failure.message)
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn urls_are_understood_or_explained(text in mutated_text(inputs(URLS))) {
        match Location::parse(&text) {
            Ok(location) => {
                prop_assert!(DRIVERS.iter().any(|driver| driver.scheme == location.scheme()));
                // What is shown names the same store.
                let again = Location::parse(&location.to_string()).unwrap();
                prop_assert_eq!(again.host(), location.host());
                prop_assert_eq!(again.path(), location.path());
                match location.url().password() {
                    None => prop_assert_eq!(&again, &location),
                    Some(_) => prop_assert_eq!(again.url().password(), Some("***")),
                }
                let query = location.url().query_pairs().count();
                prop_assert_eq!(location.parameters(&[]).is_ok(), query == 0);
                if let Err(error) = location.parameters(&["seed", "size"]) {
                    prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
                }
            }
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
                prop_assert!(is_usage(&Failure::from(&error)), "{}", error);
            }
        }
    }

    #[test]
    fn passwords_are_never_shown(
        scheme in select(vec!["memory", "s3", "file", "gopher", "S3", ""]),
        user in "[a-z%@:]{0,4}",
        rest in "[a-z0-9/?#%:@.\\[\\]]{0,8}",
    ) {
        let text = format!("{scheme}://{user}:{PASSWORD}@{rest}");
        let shown = match Location::parse(&text) {
            // Where it is no password, it is part of a name.
            Ok(location) if location.url().password().is_none_or(|word| !word.contains(PASSWORD)) => return Ok(()),
            Ok(location) => format!("{location} {location:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        prop_assert!(!shown.contains(PASSWORD), "{}", shown);
    }

    #[test]
    fn lists_of_options_are_understood_or_explained(list in mutated_text(inputs(LISTS))) {
        match fstab::parse([list.as_str()]) {
            Ok(options) => {
                for (name, _) in &options.ours {
                    prop_assert!(OPTIONS.iter().any(|option| option.name == *name));
                }
                // It does not matter into how many lists they are put.
                if !list.contains('\\') {
                    prop_assert_eq!(fstab::parse(list.split(',')), Ok(options));
                }
            }
            Err(failure) => prop_assert!(is_usage(&failure), "{:?}", failure),
        }
    }

    #[test]
    fn any_value_goes_through_a_list(values in proptest::collection::vec((select(taking_values()), ".{0,12}", any::<bool>()), 1..5)) {
        let mut lists = Vec::new();
        for (name, value, dashed) in &values {
            let name = if *dashed { name.to_string() } else { name.replace('-', "_") };
            let value = value.replace('\\', "\\\\").replace(',', "\\,");
            lists.push(format!("{name}={value}"));
        }
        let found = fstab::parse([lists.join(",").as_str()]).unwrap().ours;
        let given: Vec<_> = values.into_iter().map(|(name, value, _)| (name, value)).collect();
        prop_assert_eq!(found, given);
    }

    #[test]
    fn faults_are_understood_or_explained(spec in mutated_text(inputs(FAULTS))) {
        if let Err(error) = FaultPlan::parse(&spec) {
            prop_assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            let failure = Failure::from(&error);
            prop_assert!(is_usage(&failure), "{:?}", failure);
            prop_assert!(failure.message.contains("in the fault specification, at "));
            // A plan that is refused changes nothing.
            let plan = FaultPlan::none();
            prop_assert!(plan.set(&spec).is_err());
            prop_assert_eq!(plan.injected(), 0);
        } else {
            let parts: Vec<_> = spec.split(',').collect();
            for part in parts {
                prop_assert!(FaultPlan::parse(part).is_ok(), "{}", part);
            }
        }
    }
}

fn taking_values() -> Vec<&'static str> {
    let options = OPTIONS.iter().filter(|option| option.value.is_some());
    options.map(|option| option.name).collect()
}

/// Values of options, most of which are good ones of some option.
fn value() -> impl Strategy<Value = String> {
    let words = [
        "1",
        "0",
        "7",
        "5s",
        "500ms",
        "2m",
        "minimal",
        "indefinite",
        "512M",
        "4GiB",
        "644",
        "0755",
        "true",
        "off",
        "always",
        "locks",
        "commit",
        "close-to-open",
        "ttl",
        "debug",
        "warn",
        "/tmp/x",
        "a/b",
        "",
        "x y",
        "-1",
        "1e9",
        "99999999999999999999",
        "NaN",
        "\u{fc}",
        "0x10",
        "1.5k",
    ];
    prop_oneof![6 => select(words.map(str::to_owned).to_vec()), 1 => "\\PC{0,6}"]
}

fn option() -> impl Strategy<Value = &'static OptionSpec> {
    let options = OPTIONS.iter().filter(|option| option.name != "config");
    select(options.collect::<Vec<_>>())
}

/// Resolves with an option set in one place, and leaves out where an error says it was set.
fn resolved(
    place: u8,
    set: &[(&'static OptionSpec, String)],
    dir: &tempfile::TempDir,
) -> Result<String, String> {
    let mut sources = Sources {
        url: Some("memory:".into()),
        ..Sources::default()
    };
    let mut names = vec![];
    match place {
        0 => {
            let flags = set
                .iter()
                .map(|(option, value)| (option.name, value.into()));
            sources.flags = Flags(flags.collect());
            names.push(("--".to_owned(), ""));
        }
        1 => {
            let escaped = |value: &str| value.replace('\\', "\\\\").replace(',', "\\,");
            let list = set
                .iter()
                .map(|(option, value)| format!("{}={}", option.name, escaped(value)));
            sources.mount_options = list.collect();
            names.push(("-o ".into(), ""));
        }
        2 => {
            let variables = set.iter().map(|(option, value)| {
                let name = option.name.replace('-', "_").to_uppercase();
                (format!("BUCKETFS_{name}").into(), value.into())
            });
            sources.environment = variables.collect();
            names.extend(set.iter().map(|(option, _)| {
                let name = option.name.replace('-', "_").to_uppercase();
                (format!("BUCKETFS_{name}"), option.name)
            }));
        }
        _ => {
            let file = dir.path().join("config");
            let entries: BTreeMap<_, _> = set
                .iter()
                .map(|(option, value)| (option.name, value))
                .collect();
            std::fs::write(&file, serde_json::to_vec(&entries).unwrap()).unwrap();
            names.push((format!("{}: ", file.display()), ""));
            sources.flags.0.insert("config", file.into());
        }
    }
    match resolve(sources) {
        Ok(settings) => Ok(shown(&settings)),
        Err(failure) => {
            assert!(is_usage(&failure), "{failure:?}");
            let mut message = failure.message;
            for (begin, name) in names {
                if let Some(rest) = message.strip_prefix(&begin) {
                    message = format!("{name}{rest}");
                }
            }
            Err(message)
        }
    }
}

fn shown(settings: &Settings) -> String {
    format!("{settings:?}")
}

proptest! {
    #![proptest_config(config(600))]

    /// Flag, `-o`, environment and file take the same values, and refuse the same for the same reason.
    #[test]
    fn an_option_means_the_same_wherever_it_is_set(option in option(), value in value()) {
        // Empty variables count as not set.
        prop_assume!(!value.is_empty());
        let dir = tempfile::tempdir().unwrap();
        let set = [(option, value)];
        let flag = resolved(0, &set, &dir);
        for place in 1..4 {
            prop_assert_eq!(&resolved(place, &set, &dir), &flag, "{} {}", place, option.name);
        }
    }

    #[test]
    fn the_stronger_place_wins(option in option(), weak in value(), strong in value()) {
        let escaped = strong.replace('\\', "\\\\").replace(',', "\\,");
        let alone = Sources {
            url: Some("memory:".into()),
            mount_options: vec![format!("{}={escaped}", option.name)],
            ..Sources::default()
        };
        let name = option.name.replace('-', "_").to_uppercase();
        let both = Sources {
            environment: vec![(format!("BUCKETFS_{name}").into(), weak.into())],
            ..alone.clone()
        };
        let told = |sources| resolve(sources).map(|settings| shown(&settings));
        prop_assert_eq!(told(both), told(alone));
    }

    #[test]
    fn configuration_files_are_understood_or_explained(content in mutated(inputs(FILES))) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        std::fs::write(&file, &content).unwrap();
        let mut sources = Sources::default();
        sources.flags.0.insert("config", file.clone().into());
        let document = serde_json::from_slice::<serde_json::Value>(&content);
        match resolve(sources) {
            Ok(_) => prop_assert!(document.unwrap()["url"].is_string()),
            Err(failure) => {
                prop_assert!(is_usage(&failure), "{:?}", failure);
                prop_assert!(!failure.message.contains(PASSWORD), "{:?}", failure);
                if document.is_err() {
                    let begin = format!("{}: this configuration file is not JSON: ", file.display());
                    prop_assert!(failure.message.starts_with(&begin), "{:?}", failure);
                }
            }
        }
    }
}
