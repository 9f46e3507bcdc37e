//! Mounts of Redis, each test with a server of its own, so that it can be killed, filled and locked.

use crate::guard::kill;
use crate::harness::{
    Manner, Mount, Need, PYTHON, Place, Process, Program, Said, Variable, eventually, trial,
    trial_as,
};
use libtest_mimic::Trial;
use rustix::process::Signal;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Whether tests may start servers.
pub const ALLOWED: Need = Variable("BUCKETFS_TEST_REDIS");
pub const SERVER: Need = Program("redis-server");

pub fn trials() -> Vec<Trial> {
    let patient = Manner {
        patience: Duration::from_secs(120),
        ..Manner::default()
    };
    let usual = |name: &str, test: fn(&Place)| trial(&[ALLOWED, SERVER], name, test);
    let python = &[ALLOWED, SERVER, PYTHON];
    vec![
        usual(
            "redis::a_server_is_refused_in_words",
            a_server_is_refused_in_words,
        ),
        trial(
            python,
            "redis::a_full_server_is_enospc_until_there_is_room",
            a_full_server_is_enospc_until_there_is_room,
        ),
        trial(
            python,
            "redis::what_the_user_may_not_do_is_told",
            what_the_user_may_not_do_is_told,
        ),
        trial_as(
            patient,
            python,
            "redis::cut_connections_lose_nothing",
            cut_connections_lose_nothing,
        ),
        trial(
            python,
            "redis::a_silent_server_is_given_up",
            a_silent_server_is_given_up,
        ),
        trial_as(
            patient,
            python,
            "redis::a_killed_server_loses_nothing_acknowledged",
            a_killed_server_loses_nothing_acknowledged,
        ),
        trial(
            python,
            "redis::a_server_that_is_a_replica_for_a_while_is_waited_for",
            a_server_that_is_a_replica_for_a_while_is_waited_for,
        ),
        usual("redis::a_listing_never_scans", a_listing_never_scans),
        usual(
            "redis::what_is_written_here_costs_no_look_of_its_own",
            what_is_written_here_costs_no_look_of_its_own,
        ),
        trial(
            &[ALLOWED, SERVER, Program("openssl")],
            "redis::tls_trusts_who_it_is_told_to",
            tls_trusts_who_it_is_told_to,
        ),
        trial_as(
            patient,
            &[ALLOWED, SERVER],
            "redis::a_cluster_holds_a_bucket",
            a_cluster_holds_a_bucket,
        ),
        trial_as(
            patient,
            &[ALLOWED, SERVER],
            "redis::sentinels_name_the_server_and_its_successor",
            sentinels_name_the_server_and_its_successor,
        ),
    ]
}

/// A server with its data below the place of a test.
pub struct Server<'a> {
    place: &'a Place,
    name: String,
    pub port: u16,
    args: Vec<String>,
    process: Option<Process>,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

impl<'a> Server<'a> {
    pub fn start(place: &'a Place, args: &[&str]) -> Server<'a> {
        Server::named(place, "redis", args)
    }

    pub fn named(place: &'a Place, name: &str, args: &[&str]) -> Server<'a> {
        let mut server = Server {
            place,
            name: name.to_owned(),
            port: free_port(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            process: None,
        };
        fs::create_dir_all(server.dir()).unwrap();
        server.again();
        server
    }

    fn dir(&self) -> PathBuf {
        self.place.path(&self.name)
    }

    /// Starts it, on the data that it left.
    pub fn again(&mut self) {
        let mut command = Command::new("redis-server");
        command.current_dir(self.dir());
        if let [first, ..] = self.args.as_slice()
            && first.ends_with(".conf")
        {
            command.arg(&self.args[0]);
        }
        let port = self.port.to_string();
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--logfile", "server.log"]);
        command.args(self.args.iter().filter(|arg| !arg.ends_with(".conf")));
        self.process = Some(self.place.start(&mut command));
        eventually("the server answers", || {
            let said = self.ask(&["ping"]);
            said.contains("PONG") || said.contains("NOAUTH")
        });
    }

    pub fn kill(&mut self) {
        let process = self.process.take().unwrap();
        kill(process.pid(), Signal::KILL);
        process.end();
    }

    /// What redis-cli prints.
    pub fn ask(&self, words: &[&str]) -> String {
        let port = self.port.to_string();
        let mut command = Command::new("redis-cli");
        command.args(["-p", &port]).args(words);
        let said = self.place.run(&mut command);
        format!("{}{}", said.stdout, said.stderr).trim().to_owned()
    }

    pub fn url(&self, rest: &str) -> String {
        format!("redis://127.0.0.1:{}{rest}", self.port)
    }

    pub fn mount(&self, name: &str, rest: &str) -> Arc<Mount> {
        // Only the feed tells what changes.
        let args = ["--metadata-ttl", "1h", "--negative-metadata-ttl", "1h"];
        self.place.mount(name, &self.url(rest), &args, true)
    }
}

/// Tries to mount, which must fail.
pub fn refusal(place: &Place, url: &str, variables: &[(&str, &str)]) -> Said {
    let dir = place.path("refused");
    let _ = fs::create_dir(&dir);
    let mut command = place.command(&["mount", url, dir.to_str().unwrap()]);
    command.env_remove("REDISCLI_AUTH");
    command.envs(variables.iter().copied());
    let said = place.run(&mut command);
    assert_ne!(said.code, Some(0), "{said:?}");
    assert_eq!(said.stderr.trim().lines().count(), 1, "{said:?}");
    said
}

pub fn read(mount: &Mount, name: &str) -> String {
    fs::read_to_string(mount.path(name)).unwrap()
}

fn a_server_is_refused_in_words(place: &Place) {
    let server = Server::start(place, &["--requirepass", "geheim"]);
    let replica = Server::named(
        place,
        "replica",
        &["--replicaof", "127.0.0.1", &free_port().to_string()],
    );
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    std::thread::spawn(move || {
        use std::io::Write;
        for stream in other.incoming() {
            let _ = stream
                .unwrap()
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let with = |password: &str| format!("redis://:{password}@127.0.0.1:{}/0", server.port);
    let closed = format!("redis://127.0.0.1:{}/0", free_port());
    for (url, code, why) in [
        (server.url("/0"), 4, "wants a password"),
        (
            with("falsch"),
            4,
            "takes neither this user nor this password",
        ),
        (closed, 3, "cannot reach 127.0.0.1"),
        (
            format!("redis://127.0.0.1:{port}/0"),
            3,
            "does not speak as Redis does",
        ),
        (
            format!("rediss://127.0.0.1:{}/0", server.port),
            3,
            "127.0.0.1",
        ),
        (replica.url("/0"), 9, "is a read-only replica"),
    ] {
        let said = refusal(place, &url, &[]);
        assert!(said.stderr.contains(why), "{url}: {said:?}");
        assert_eq!(said.code, Some(code), "{url}: {said:?}");
        assert!(!said.stderr.contains("falsch") && !said.stderr.contains("geheim"));
    }
    let open = Server::named(place, "open", &[]);
    open.ask(&["set", "{bucketfs}:meta", "foo"]);
    for rest in ["/0", "/0?layout=objects"] {
        let said = refusal(place, &open.url(rest), &[]);
        let why = "the key {bucketfs}:meta holds a string";
        assert!(said.stderr.contains(why), "{said:?}");
        assert!(said.stderr.contains("layout=data"), "{said:?}");
    }
    let mount = open.mount("open-mount", "/0?layout=data");
    assert_eq!(read(&mount, "{bucketfs}:meta"), "foo");
    let mount = place.mount("m", &with("geheim"), &[], true);
    fs::write(mount.path("k"), "x").unwrap();
    drop(mount);
    let read_only = ["--read-only"];
    let mount = place.mount("r", &replica.url("/0"), &read_only, true);
    assert_eq!(fs::read_dir(mount.path("")).unwrap().count(), 0);
}

/// Writes so many bytes, and says what close says.
const FILLING: &str = "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(fd, b'x' * int(sys.argv[2]))
say(attempt(os.close, fd))";

fn a_full_server_is_enospc_until_there_is_room(place: &Place) {
    for (name, rest) in [("d", "/0"), ("o", "/0?layout=objects")] {
        let server = Server::named(place, &format!("redis-{name}"), &["--maxmemory", "16mb"]);
        let mount = server.mount(name, rest);
        fs::write(mount.path("small"), "stays").unwrap();
        let said = place.script(FILLING, &[&mount.path("large"), "30000000".as_ref()]);
        assert_eq!(said, "ENOSPC");
        assert!(
            mount
                .status()
                .to_string()
                .contains("has reached its maxmemory")
        );
        assert_eq!(read(&mount, "small"), "stays");
        server.ask(&["config", "set", "maxmemory", "0"]);
        eventually("the file is sent", || mount.number("dirty_files") == 0);
        assert_eq!(fs::metadata(mount.path("large")).unwrap().len(), 30_000_000);
        let again = server.mount(&format!("{name}2"), rest);
        assert_eq!(fs::read(again.path("large")).unwrap().len(), 30_000_000);
    }
}

fn what_the_user_may_not_do_is_told(place: &Place) {
    let server = Server::start(place, &[]);
    let rights = "acl setuser reader on >geheim ~* +@read +@connection +eval +evalsha +info +client -@dangerous +info";
    let said = server.ask(&rights.split(' ').collect::<Vec<_>>());
    assert_eq!(said, "OK");
    server.ask(&["set", "k", "old"]);
    let url = format!("redis://reader:geheim@127.0.0.1:{}/0", server.port);
    let mount = place.mount("m", &url, &[], true);
    assert_eq!(read(&mount, "k"), "old");
    let said = place.script(FILLING, &[&mount.path("k"), "10".as_ref()]);
    assert_eq!(said, "EACCES");
    assert!(
        mount
            .status()
            .to_string()
            .contains("the user may not do this")
    );
    assert_eq!(server.ask(&["get", "k"]), "old");
}

/// Saves numbered files until it is told to stop, and says which are acknowledged.
const SAVING: &str = "
root, stop, number = sys.argv[1], sys.argv[2], 0
def save(path, text):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)
while not os.path.exists(stop):
    path = os.path.join(root, 'f%d' % (number % 7))
    if attempt(save, path, b'%d' % number) == 'OK':
        say(number)
    number += 1
";

/// What was acknowledged of each of the files that [`SAVING`] writes.
#[derive(Default)]
struct Acknowledged([Option<u64>; 7]);

impl Acknowledged {
    fn note(&mut self, line: &str) {
        let number: u64 = line.parse().unwrap();
        self.0[number as usize % 7] = Some(number);
    }

    /// Each file holds what was acknowledged, or what was written later.
    fn is_kept(&self, mount: &Mount) {
        for (at, number) in self.0.iter().enumerate() {
            let found: u64 = read(mount, &format!("f{at}")).parse().unwrap();
            assert!(
                found >= number.unwrap(),
                "f{at}: {found}, and {number:?} was acknowledged"
            );
        }
    }
}

/// Saves while something befalls the server again and again.
fn saves_through(server: &mut Server, times: usize, befalls: impl Fn(&mut Server)) {
    let place = server.place;
    let mount = server.mount("m", "/0?layout=objects");
    let (root, stop) = (mount.path(""), place.path("stop"));
    let mut saving = place.start(&mut place.python(SAVING, &[&root, &stop]));
    let mut acknowledged = Acknowledged::default();
    for round in 0..=times {
        for _ in 0..50 {
            acknowledged.note(&saving.line());
        }
        if round < times {
            befalls(server);
        }
    }
    fs::write(&stop, "").unwrap();
    let rest = saving.end().stdout;
    rest.lines().for_each(|line| acknowledged.note(line));
    eventually("everything is sent", || mount.number("dirty_files") == 0);
    acknowledged.is_kept(&server.mount("n", "/0?layout=objects"));
    let status = mount.status();
    let conflicts = status["fs"]["conflicts"].as_array().unwrap();
    assert!(conflicts.is_empty(), "{conflicts:?}");
}

fn a_killed_server_loses_nothing_acknowledged(place: &Place) {
    let kept = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut server = Server::start(place, &kept);
    saves_through(&mut server, 3, |server| {
        server.kill();
        std::thread::sleep(Duration::from_millis(300));
        server.again();
    });
}

/// A request whose answer is cut off is sent again, and known again where it was applied.
fn cut_connections_lose_nothing(place: &Place) {
    let mut server = Server::start(place, &[]);
    saves_through(&mut server, 20, |server| {
        server.ask(&["client", "kill", "type", "normal"]);
    });
}

fn a_silent_server_is_given_up(place: &Place) {
    let server = Server::start(place, &[]);
    let args = ["--deadline", "2s", "--retries", "1"];
    let mount = place.mount("m", &server.url("/0?layout=objects"), &args, true);
    fs::write(mount.path("f"), "old").unwrap();
    let pid = server.process.as_ref().unwrap().pid();
    let script = "
fd = os.open(sys.argv[1], os.O_WRONLY)
os.kill(int(sys.argv[2]), signal.SIGSTOP)
os.write(fd, b'new')
say(attempt(os.close, fd))";
    let said = place.script(script, &[&mount.path("f"), pid.to_string().as_ref()]);
    assert_eq!(said, "ETIMEDOUT");
    kill(pid, Signal::CONT);
    eventually("everything is sent", || mount.number("dirty_files") == 0);
    assert_eq!(read(&server.mount("n", "/0?layout=objects"), "f"), "new");
}

fn a_server_that_is_a_replica_for_a_while_is_waited_for(place: &Place) {
    let server = Server::start(place, &[]);
    let mount = server.mount("m", "/0?layout=objects");
    let script = "
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
os.write(fd, b'new')
say('written')
sys.stdin.read()
say(attempt(os.close, fd))";
    let mut command = place.python(script, &[&mount.path("f")]);
    let mut saving = place.start(command.stdin(Stdio::piped()));
    assert_eq!(saving.line(), "written");
    server.ask(&["replicaof", "127.0.0.1", &free_port().to_string()]);
    drop(saving.stdin());
    // Some attempts are refused, and not all that there are.
    std::thread::sleep(Duration::from_millis(300));
    server.ask(&["replicaof", "no", "one"]);
    assert_eq!(saving.line(), "OK");
    assert_eq!(saving.end().code, Some(0));
    assert_eq!(read(&server.mount("n", "/0?layout=objects"), "f"), "new");
    let status = mount.status();
    assert_eq!(status["fs"]["conflicts"].as_array().unwrap().len(), 0);
}

fn a_listing_never_scans(place: &Place) {
    let server = Server::start(place, &[]);
    let mount = server.mount("m", "/0?layout=objects");
    for i in 0..50 {
        fs::create_dir_all(mount.path(&format!("d{i}/e"))).unwrap();
        fs::write(mount.path(&format!("d{i}/e/f")), "x").unwrap();
    }
    let other = server.mount("n", "/0?layout=objects");
    assert_eq!(fs::read_dir(other.path("")).unwrap().count(), 50);
    let found = place.run(Command::new("find").arg(other.path("")));
    assert_eq!(found.stdout.lines().count(), 151);
    let calls = server.ask(&["info", "commandstats"]);
    assert!(calls.contains("cmdstat_evalsha"), "{calls}");
    for never in [
        "cmdstat_scan",
        "cmdstat_keys",
        "cmdstat_sscan",
        "cmdstat_hscan",
    ] {
        assert!(!calls.contains(never), "{never}");
    }
}

fn what_is_written_here_costs_no_look_of_its_own(place: &Place) {
    let server = Server::start(place, &[]);
    let mount = server.mount("m", "/0?layout=objects");
    fs::create_dir(mount.path("d")).unwrap();
    let calls = |command: &str| -> usize {
        let stats = server.ask(&["info", "commandstats"]);
        let begin = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&begin));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    };
    let (scripts, looks) = (calls("evalsha"), calls("mget"));
    for i in 0..400 {
        fs::write(mount.path(&format!("d/{i}")), "x").unwrap();
    }
    let scripts = calls("evalsha") - scripts;
    assert!((400..=410).contains(&scripts), "{scripts} scripts");
    // The echoes of what is written within some ms are looked at together.
    let looks = calls("mget") - looks;
    assert!((1..=300).contains(&looks), "{looks} looks");
}

/// A folder with an authority, `ca.crt`, and a certificate of this machine that it made: `s.crt`, `s.key`.
pub fn certificates(place: &Place) -> PathBuf {
    let dir = place.path("keys");
    fs::create_dir(&dir).unwrap();
    let made = "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca &&
        openssl req -newkey rsa:2048 -nodes -keyout s.key -out s.csr -subj /CN=localhost &&
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1' > ext &&
        openssl x509 -req -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out s.crt -days 2 -extfile ext";
    let said = place.run(Command::new("sh").args(["-c", made]).current_dir(&dir));
    assert_eq!(said.code, Some(0), "{said:?}");
    dir
}

fn tls_trusts_who_it_is_told_to(place: &Place) {
    let dir = certificates(place);
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let port = free_port();
    let (secure, key, crt, ca) = (
        port.to_string(),
        path("s.key"),
        path("s.crt"),
        path("ca.crt"),
    );
    let args = [
        "--tls-port",
        &secure,
        "--tls-key-file",
        &key,
        "--tls-cert-file",
        &crt,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ];
    let server = Server::start(place, &args);
    let url = format!("rediss://127.0.0.1:{port}/0?layout=objects");
    let said = refusal(place, &url, &[]);
    assert_eq!(said.code, Some(3), "{said:?}");
    let dir = place.path("m");
    fs::create_dir(&dir).unwrap();
    let mut command = place.command(&["mount", "-f", &url, dir.to_str().unwrap()]);
    command.env("SSL_CERT_FILE", &ca);
    let mount = place.started("m", command, true);
    fs::write(mount.path("f"), "over TLS").unwrap();
    let plain = server.mount("n", "/0");
    assert_eq!(read(&plain, "f"), "over TLS");
}

fn a_cluster_holds_a_bucket(place: &Place) {
    let nodes: Vec<Server> = (0..3)
        .map(|at| {
            let name = format!("node{at}");
            Server::named(place, &name, &["--cluster-enabled", "yes"])
        })
        .collect();
    let mut command = Command::new("redis-cli");
    command.args(["--cluster", "create", "--cluster-yes"]);
    command.args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
    let said = place.run(&mut command);
    assert_eq!(said.code, Some(0), "{said:?}");
    eventually("the cluster is up", || {
        nodes
            .iter()
            .all(|node| node.ask(&["cluster", "info"]).contains("cluster_state:ok"))
    });
    for (at, prefix) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let rest = format!("/0?layout=objects&cluster=yes&prefix={prefix}");
        let mount = place.mount(prefix, &nodes[at % 3].url(&rest), &[], true);
        fs::create_dir(mount.path("d")).unwrap();
        fs::write(mount.path("d/large"), vec![7; 3 << 20]).unwrap();
        fs::rename(mount.path("d/large"), mount.path("moved")).unwrap();
        let other = place.mount(
            &format!("{prefix}2"),
            &nodes[(at + 1) % 3].url(&rest),
            &[],
            true,
        );
        assert_eq!(fs::read(other.path("moved")).unwrap(), vec![7; 3 << 20]);
        assert_eq!(fs::read_dir(other.path("")).unwrap().count(), 2);
    }
    let used = nodes.iter().filter(|node| node.ask(&["dbsize"]) != "0");
    assert!(used.count() > 1, "all is on one node");
    let said = refusal(place, &nodes[0].url("/0?cluster=yes"), &[]);
    assert!(
        said.stderr.contains("a cluster can hold objects only"),
        "{said:?}"
    );
}

fn sentinels_name_the_server_and_its_successor(place: &Place) {
    let mut first = Server::named(place, "first", &[]);
    let port = first.port.to_string();
    let second = Server::named(place, "second", &["--replicaof", "127.0.0.1", &port]);
    eventually("the replica follows", || {
        second
            .ask(&["info", "replication"])
            .contains("master_link_status:up")
    });
    let configuration = place.path("sentinel.conf");
    let text = format!(
        "sentinel monitor it 127.0.0.1 {port} 1\nsentinel down-after-milliseconds it 500\nsentinel failover-timeout it 5000\n"
    );
    fs::write(&configuration, text).unwrap();
    let sentinel = Server::named(
        place,
        "sentinel",
        &[configuration.to_str().unwrap(), "--sentinel"],
    );
    eventually("the Sentinel knows both", || {
        sentinel
            .ask(&["sentinel", "replicas", "it"])
            .contains(&second.port.to_string())
    });
    let url = sentinel.url("/0?layout=objects&sentinel=it");
    let mount = place.mount("m", &url, &[], true);
    fs::write(mount.path("before"), "x").unwrap();
    first.kill();
    eventually("the successor is used", || {
        fs::write(mount.path("after"), "y").is_ok()
    });
    eventually("everything is sent", || mount.number("dirty_files") == 0);
    let found = second.mount("n", "/0");
    assert_eq!(
        (read(&found, "before"), read(&found, "after")),
        ("x".into(), "y".into())
    );
    let said = refusal(place, &sentinel.url("/0?sentinel=other"), &[]);
    assert!(said.stderr.contains("no Sentinel of"), "{said:?}");
}
