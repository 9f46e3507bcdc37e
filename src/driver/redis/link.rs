//! The connection to a server, made anew where it broke, and what its errors mean.

use super::target::{Mode, Target};
use crate::driver::silence::{SILENCE, Waiting};
use crate::driver::{Error, ErrorKind, Result};
use ::redis::aio::{AsyncPushSender, ConnectionLike, MultiplexedConnection};
use ::redis::cluster::ClusterClientBuilder;
use ::redis::cluster_async::ClusterConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    ProtocolVersion, RedisConnectionInfo, RedisError, RedisResult, Script, TlsMode, Value,
};
use parking_lot::Mutex;
use std::fmt;
use std::time::Duration;

/// How long a connection may take to be made.
const DIALING: Duration = Duration::from_secs(10);
/// What stands in a refusal before the arguments of the command that was refused.
const ARGUMENTS: &str = "with args beginning with";

/// A script, and the name under which the server keeps it.
pub(super) struct Lua {
    code: &'static str,
    hash: String,
}

impl Lua {
    pub(super) fn new(code: &'static str) -> Self {
        let hash = Script::new(code).get_hash().to_owned();
        Lua { code, hash }
    }
}

/// A connection, which many requests share.
#[derive(Clone)]
enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// A server, and the connection to it while there is one.
pub(super) struct Link {
    target: Target,
    /// Held while a connection is made. Taken before `current`.
    dialing: tokio::sync::Mutex<Option<SentinelClient>>,
    /// With a number that tells it from those before. A leaf lock, held for moments only.
    current: Mutex<(u64, Option<Connection>)>,
}

impl Link {
    pub(super) fn new(target: Target) -> Self {
        Link {
            target,
            dialing: tokio::sync::Mutex::default(),
            current: Mutex::default(),
        }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Sends a command.
    pub(super) async fn ask(&self, cmd: &Cmd) -> Result<Value> {
        self.send(cmd).await.map_err(|cause| self.error(cause))
    }

    async fn send(&self, cmd: &Cmd) -> RedisResult<Value> {
        let (number, mut connection) = self.connection().await?;
        let waiting = Waiting::begin(|| self.forget(number));
        let answer = match &mut connection {
            Connection::Single(connection) => connection.req_packed_command(cmd).await,
            Connection::Cluster(connection) => connection.req_packed_command(cmd).await,
        };
        let answer = answer.and_then(Value::extract_error);
        waiting.end();
        // A server that became a replica is not the one that is meant any more.
        let broken = |cause: &RedisError| {
            cause.is_io_error() || cause.is_unrecoverable_error() || code(cause) == "READONLY"
        };
        if answer.as_ref().is_err_and(broken) {
            self.forget(number);
        }
        answer
    }

    /// Runs a script, which the server is sent once. The keys tell the shard.
    pub(super) async fn run<'a>(
        &self,
        script: &Lua,
        keys: &[&[u8]],
        arguments: impl IntoIterator<Item = &'a [u8]> + Clone,
    ) -> Result<Value> {
        let call = |name: &str, code: &str| {
            let mut cmd = ::redis::cmd(name);
            cmd.arg(code).arg(keys.len()).arg(keys);
            for argument in arguments.clone() {
                cmd.arg(argument);
            }
            cmd
        };
        match self.send(&call("EVALSHA", &script.hash)).await {
            Err(cause) if cause.code() == Some("NOSCRIPT") => {
                self.ask(&call("EVAL", script.code)).await
            }
            answer => answer.map_err(|cause| self.error(cause)),
        }
    }

    fn forget(&self, number: u64) {
        let mut current = self.current.lock();
        if current.0 == number {
            current.1 = None;
        }
    }

    fn there(&self) -> Option<(u64, Connection)> {
        let current = self.current.lock();
        current.1.clone().map(|connection| (current.0, connection))
    }

    async fn connection(&self) -> RedisResult<(u64, Connection)> {
        if let Some(there) = self.there() {
            return Ok(there);
        }
        let mut sentinels = self.dialing.lock().await;
        if let Some(there) = self.there() {
            return Ok(there);
        }
        let connection = match &self.target.mode {
            Mode::Cluster => Connection::Cluster(self.cluster().await?),
            _ => Connection::Single(self.dial(&mut sentinels, config()).await?),
        };
        let mut current = self.current.lock();
        *current = (current.0 + 1, Some(connection.clone()));
        Ok((current.0, connection))
    }

    async fn dial(
        &self,
        sentinels: &mut Option<SentinelClient>,
        config: AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        let client = match (&self.target.mode, &mut *sentinels) {
            (Mode::Sentinel(_), Some(known)) => known.async_get_client().await?,
            (Mode::Sentinel(name), none) => {
                let known = none.insert(self.sentinels(name)?);
                known.async_get_client().await?
            }
            _ => Client::open(self.node(0)?)?,
        };
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// A connection of its own, on which the server can push.
    pub(super) async fn listen(
        &self,
        pushes: impl AsyncPushSender,
    ) -> Result<MultiplexedConnection> {
        let mut sentinels = self.dialing.lock().await;
        let dialed = self
            .dial(&mut sentinels, config().set_push_sender(pushes))
            .await;
        dialed.map_err(|cause| self.error(cause))
    }

    fn node(&self, at: usize) -> RedisResult<ConnectionInfo> {
        let target = &self.target;
        let (host, port) = target.nodes.0[at].clone();
        let address = match target.tls {
            false => ConnectionAddr::Tcp(host, port),
            true => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            },
        };
        let mut settings = RedisConnectionInfo::default()
            .set_db(target.database.unwrap_or(0))
            .set_lib_name("bucketfs", env!("CARGO_PKG_VERSION"))
            .set_protocol(ProtocolVersion::RESP3);
        if let Some(user) = &target.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &target.password {
            settings = settings.set_password(password);
        }
        let info = address.into_connection_info()?.set_redis_settings(settings);
        Ok(info.set_tcp_settings(tcp()))
    }

    fn sentinels(&self, name: &str) -> RedisResult<SentinelClient> {
        let target = &self.target;
        let nodes = (0..target.nodes.0.len()).map(|at| Ok(self.node(at)?.addr().clone()));
        let nodes: Vec<_> = nodes.collect::<RedisResult<_>>()?;
        let mut builder = SentinelClientBuilder::new(nodes, name, SentinelServerType::Master)?
            .set_client_to_redis_db(target.database.unwrap_or(0))
            .set_client_to_redis_protocol(ProtocolVersion::RESP3)
            .set_client_to_redis_tcp_settings(tcp());
        if target.tls {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        }
        if let Some(user) = &target.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &target.password {
            builder = builder.set_client_to_redis_password(password);
        }
        builder.build()
    }

    async fn cluster(&self) -> RedisResult<ClusterConnection> {
        let nodes = (0..self.target.nodes.0.len()).map(|at| self.node(at));
        let nodes: Vec<_> = nodes.collect::<RedisResult<_>>()?;
        let client = ClusterClientBuilder::new(nodes)
            .connection_timeout(DIALING)
            .response_timeout(SILENCE)
            .overall_response_timeout(None)
            .tcp_settings(tcp())
            // What may have been done is sent again only by who knows what that means.
            .retries(0)
            .build()?;
        client.get_async_connection().await
    }

    /// The error that callers get: by kind, and with what to do.
    pub(super) fn error(&self, cause: RedisError) -> Error {
        use ::redis::ErrorKind as Kind;
        let at = &self.target;
        let said = cause.detail().unwrap_or_default();
        let (kind, why) = match (code(&cause), cause.kind()) {
            ("WRONGPASS", _) | (_, Kind::AuthenticationFailed) => (
                ErrorKind::Unauthenticated,
                format!(
                    "{at} takes neither this user nor this password: they go into the URL, redis://USER:PASSWORD@HOST, or the password into REDISCLI_AUTH"
                ),
            ),
            ("NOAUTH", _) => (
                ErrorKind::Unauthenticated,
                format!(
                    "{at} wants a password: set REDISCLI_AUTH, or write redis://USER:PASSWORD@HOST"
                ),
            ),
            ("NOPERM", _) => (
                ErrorKind::Denied,
                "the user may not do this; ACL SETUSER grants commands and keys".to_owned(),
            ),
            // It may be the primary again, or another may be found.
            ("READONLY", _) => (
                ErrorKind::Unavailable,
                format!(
                    "{at} is a read-only replica: name its primary, or let Sentinels find it (sentinel=NAME)"
                ),
            ),
            ("OOM", _) => (
                ErrorKind::NoSpace,
                format!("{at} has reached its maxmemory: remove something, or raise it"),
            ),
            ("MISCONF", _) => (
                ErrorKind::Unavailable,
                format!("{at} takes no writes, for it cannot save to its disk; see its log"),
            ),
            (
                "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY" | "MOVED" | "ASK",
                _,
            ) => (ErrorKind::Unavailable, format!("{at} cannot answer yet")),
            (_, Kind::RESP3NotSupported) => (
                ErrorKind::Unsupported,
                format!("{at} speaks an old protocol; Redis 6 or newer is needed"),
            ),
            (_, Kind::Parse | Kind::UnexpectedReturnType) => (
                ErrorKind::Unreachable,
                format!(
                    "what answers at {at} does not speak as Redis does; is it the right port, and redis:// or rediss:// as the server has it?"
                ),
            ),
            (_, Kind::MasterNameNotFoundBySentinel) => (
                ErrorKind::NotFound,
                format!("no Sentinel of {at} knows a server of that name, or none is up"),
            ),
            (_, Kind::Io | Kind::ClusterConnectionNotFound) => {
                (ErrorKind::Unreachable, format!("cannot reach {at}"))
            }
            ("ERR", _) if said.contains("DB index") => (
                ErrorKind::NotFound,
                "the server has no database of that number".to_owned(),
            ),
            ("ERR", _) if said.contains("HELLO") || said.contains("unknown command") => (
                ErrorKind::Unsupported,
                format!("{at} lacks a command that is needed; Redis 6 or newer is"),
            ),
            ("", _) => (
                ErrorKind::Unreachable,
                format!("the connection to {at} failed"),
            ),
            _ => (ErrorKind::Io, format!("{at} refused")),
        };
        match kind {
            ErrorKind::Unauthenticated => Error::new(kind, why),
            _ => match self.without_secrets(&cause.to_string()) {
                Some(said) => Error::new(kind, why).because(said),
                None => Error::new(kind, why),
            },
        }
    }

    /// What was said, without what was sent: an unknown command is told with its arguments, and
    /// HELLO has the password among them.
    fn without_secrets(&self, said: &str) -> Option<String> {
        let said = said.split(ARGUMENTS).next().unwrap_or_default();
        let secret = self.target.password.as_deref().filter(|it| !it.is_empty());
        let shows = secret.is_some_and(|secret| said.contains(secret));
        (!shows).then(|| said.trim_end_matches([',', ' ']).to_owned())
    }
}

/// The code of a refusal. What befell a script is told by its own words, or with the code within.
fn code(cause: &RedisError) -> &str {
    let code = cause.code().unwrap_or_default();
    if code != "ERR" {
        return code;
    }
    let said = cause.detail().unwrap_or_default();
    let known = ["OOM", "READONLY", "MISCONF", "NOPERM"];
    let within = known
        .into_iter()
        .find(|code| said.contains(&format!("-{code} ")));
    let barred = said.contains("The user executing the script can't");
    within.or(barred.then_some("NOPERM")).unwrap_or(code)
}

/// The layers above know how long a request may take.
fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(DIALING))
        .set_response_timeout(None)
}

fn tcp() -> TcpSettings {
    TcpSettings::default()
        .set_nodelay(true)
        .set_user_timeout(SILENCE)
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Location;

    #[test]
    fn no_refusal_shows_the_password() {
        let url = Location::parse("redis://:hunter2@h/0").expect("a URL");
        let link = Link::new(Target::parse(&url, false).expect("a target"));
        for said in [
            "ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' 'hunter2'",
            "ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `hun",
            "ERR what is HELLO 3 AUTH default hunter2?",
            "NOPERM HELLO 3 AUTH default hunter2",
            "LOADING HELLO 3 AUTH default hunter2",
            "ODD HELLO 3 AUTH default hunter2",
        ] {
            let answer = ::redis::parse_redis_value(format!("-{said}\r\n").as_bytes());
            let refused = answer.and_then(Value::extract_error);
            let error = link.error(refused.expect_err(said));
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hun"), "{said}: {shown}");
        }
        let error = RedisError::from(std::io::Error::other("no route"));
        assert!(link.error(error).to_string().contains("no route"));
    }
}
