//! What a URL of MongoDB names: servers, database, collection.

use crate::driver::servers::{self, Nodes, wrong};
use crate::driver::{Location, Result};
use crate::key::Key;
use ::mongodb::options::{
    Acknowledgment, AuthMechanism, ClientOptions, Credential, DriverInfo, ServerAddress, Tls,
    TlsOptions, WriteConcern,
};
use std::fmt;
use std::time::Duration;

/// A place in a server. `Debug` shows no password.
#[derive(Clone)]
pub(super) struct Target {
    nodes: Nodes,
    user: Option<String>,
    password: Option<String>,
    auth_source: Option<String>,
    mechanism: Option<AuthMechanism>,
    replica_set: Option<String>,
    direct: Option<bool>,
    tls: bool,
    tls_ca: Option<String>,
    /// `None` where the URL names the server only.
    pub database: Option<String>,
    /// The GridFS bucket in it, where the URL is of files.
    pub bucket: Option<String>,
    /// The part of the database, or of the bucket, that the URL names.
    pub below: Key,
}

const PARAMETERS: &[&str] = &[
    "authMechanism",
    "authSource",
    "directConnection",
    "layout",
    "nodes",
    "replicaSet",
    "tls",
    "tlsCAFile",
];
const PORT: u16 = 27017;
/// The GridFS bucket of a database whose URL names none, as drivers have it.
const BUCKET: &str = "fs";
/// The variable of a password that does not stand in the URL.
const PASSWORD: &str = "MONGODB_PASSWORD";
/// How long a connection may take to be made.
const DIALING: Duration = Duration::from_secs(5);
/// How long a server that can be used is looked for; the layers above ask again.
const LOOKING: Duration = Duration::from_secs(4);

fn switch(name: &str, word: &str) -> Result<bool> {
    match word {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(wrong(format!("write {name}=true or {name}=false"))),
    }
}

impl Target {
    pub(super) fn parse(location: &Location) -> Result<Target> {
        let parameters = location.parameters(PARAMETERS)?;
        let nodes = Nodes::of(location, parameters.get("nodes"), PORT)?;
        let mechanism = match parameters.get("authMechanism").map(String::as_str) {
            None => None,
            Some("SCRAM-SHA-1") => Some(AuthMechanism::ScramSha1),
            Some("SCRAM-SHA-256") => Some(AuthMechanism::ScramSha256),
            Some("PLAIN") => Some(AuthMechanism::Plain),
            Some(other) => {
                return Err(wrong(format!(
                    "authMechanism={other:?} is none of SCRAM-SHA-256, SCRAM-SHA-1, PLAIN"
                )));
            }
        };
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let (user, password) = servers::login(location, PASSWORD)?;
        let set = |name: &str| match parameters.get(name) {
            Some(word) => switch(name, word).map(Some),
            None => Ok(None),
        };
        let path = String::from_utf8(location.path());
        let path = path.map_err(|_| wrong("the URL is not UTF-8"))?;
        let (database, below) = path.split_once('/').unwrap_or((&path, ""));
        if database.contains([' ', '.', '$', '"', '\\']) {
            return Err(wrong(format!(
                "{database:?} cannot be the name of a database"
            )));
        }
        if database.is_empty() && !below.is_empty() {
            return Err(wrong(
                "the path begins with a database, as in mongodb://HOST/DATABASE/COLLECTION",
            ));
        }
        let (bucket, below) = match parameters.get("layout").map(String::as_str) {
            None | Some("documents") => (None, below),
            Some("gridfs") if database.is_empty() => {
                return Err(wrong(
                    "files are in a bucket of a database: write mongodb://HOST/DATABASE/BUCKET?layout=gridfs",
                ));
            }
            Some("gridfs") => {
                let (bucket, below) = below.split_once('/').unwrap_or((below, ""));
                let bucket = if bucket.is_empty() { BUCKET } else { bucket };
                if bucket.contains('$') {
                    return Err(wrong(format!("{bucket:?} cannot be the name of a bucket")));
                }
                (Some(bucket.to_owned()), below)
            }
            Some(other) => {
                return Err(wrong(format!(
                    "layout={other:?} is neither documents nor gridfs"
                )));
            }
        };
        // A collection is a directory.
        let below = match below.contains('/') || below.is_empty() || bucket.is_some() {
            true => Key::from(below),
            false => Key::from(format!("{below}/")),
        };
        Ok(Target {
            nodes,
            user,
            password,
            auth_source: parameters.get("authSource").cloned(),
            mechanism,
            replica_set: parameters.get("replicaSet").cloned(),
            direct: set("directConnection")?,
            tls: set("tls")?.unwrap_or(false) || parameters.contains_key("tlsCAFile"),
            tls_ca: parameters.get("tlsCAFile").cloned(),
            database: some(database.to_owned()),
            bucket,
            below,
        })
    }

    /// Whether a user is named.
    pub(super) fn has_user(&self) -> bool {
        self.user.is_some()
    }

    /// How the client is told.
    pub(super) fn options(&self) -> ClientOptions {
        let nodes = self.nodes.0.iter().map(|(host, port)| ServerAddress::Tcp {
            host: host.clone(),
            port: Some(*port),
        });
        let mut options = ClientOptions::default();
        options.hosts = nodes.collect();
        options.app_name = Some("bucketfs".to_owned());
        options.driver_info = Some(
            DriverInfo::builder()
                .name("bucketfs")
                .version(env!("CARGO_PKG_VERSION").to_owned())
                .build(),
        );
        options.repl_set_name = self.replica_set.clone();
        options.direct_connection = self.direct;
        options.connect_timeout = Some(DIALING);
        options.server_selection_timeout = Some(LOOKING);
        // What is acknowledged survives the loss of a server.
        options.write_concern = Some(
            WriteConcern::builder()
                .w(Acknowledgment::Majority)
                .journal(true)
                .build(),
        );
        if let Some(user) = &self.user {
            let mut credential = Credential::default();
            credential.username = Some(user.clone());
            credential.password = self.password.clone();
            credential.source = self.auth_source.clone();
            credential.mechanism = self.mechanism.clone();
            options.credential = Some(credential);
        }
        if self.tls {
            let mut tls = TlsOptions::default();
            tls.ca_file_path = self.tls_ca.clone().map(Into::into);
            options.tls = Some(Tls::Enabled(tls));
        }
        options
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.nodes.joined(","))
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("nodes", &self.nodes)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("bucket", &self.bucket)
            .field("below", &self.below)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ErrorKind;

    fn parse(url: &str) -> Result<Target> {
        Target::parse(&Location::parse(url)?)
    }

    #[test]
    fn a_url_names_servers_a_database_and_a_collection() {
        let server = parse("mongodb://").expect("parses");
        assert_eq!(
            (server.to_string(), server.database),
            ("127.0.0.1:27017".into(), None)
        );
        let full = parse("mongodb://me:p%40ss@h:7/app/users?nodes=i:8,j&replicaSet=r");
        let full = full.expect("parses");
        assert_eq!(full.to_string(), "h:7,i:8,j:27017");
        assert_eq!(full.database.as_deref(), Some("app"));
        assert_eq!(full.below, Key::from("users/"));
        let options = full.options();
        let credential = options.credential.expect("a user");
        assert_eq!(credential.password.as_deref(), Some("p@ss"));
        assert!(!format!("{full:?} {full}").contains("p@ss"));
        let one = parse("mongodb://h/app/users/x.json").expect("parses");
        assert_eq!(one.below, Key::from("users/x.json"));
        for (url, bucket, below) in [
            ("mongodb://h/app?layout=gridfs", "fs", ""),
            (
                "mongodb://h/app/my.files/a/b?layout=gridfs",
                "my.files",
                "a/b",
            ),
        ] {
            let files = parse(url).expect("parses");
            assert_eq!(files.bucket.as_deref(), Some(bucket));
            assert_eq!(files.below, Key::from(below));
        }
    }

    #[test]
    fn what_no_url_can_mean_is_refused() {
        for (url, why) in [
            ("mongodb://h//users", "begins with a database"),
            ("mongodb://h/a.b", "cannot be the name"),
            ("mongodb://h/a?tls=maybe", "tls=true or tls=false"),
            ("mongodb://h/a?authMechanism=X", "none of"),
            ("mongodb://h/a?nodes=a:b", "HOST:PORT"),
            ("mongodb://h?layout=gridfs", "in a bucket of a database"),
            ("mongodb://h/a/$x?layout=gridfs", "name of a bucket"),
            ("mongodb://h/a?layout=files", "neither documents nor gridfs"),
            ("mongodb://h/a?color=red", "no parameter"),
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{url}");
            assert!(error.to_string().contains(why), "{url}: {error}");
        }
    }
}
