//! The double of RethinkDB as a process of its own, for scripts: `rethinkdb-double PORT CONTROL`. On the port CONTROL another
//! program reads and writes without the protocol: `[VERB, DATABASE, TABLE, KEY, ...]` on a line is answered by
//! `{"told": ...}` or `{"error": ...}`.

// The attributes by which clippy knows tests are those of the standard harness.
#![allow(clippy::unwrap_used)]

#[path = "../rethinkdb.rs"]
mod rethinkdb;

use rethinkdb::Server;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// Every table has this key.
const KEY: &str = "id";

fn obey(server: &Server, words: &[Value]) -> Result<Value, String> {
    let text = |at: usize| words.get(at).and_then(Value::as_str).unwrap_or_default();
    let (verb, database, table) = (text(0), text(1), text(2));
    let there = server.keys(database, table);
    if verb == "put" && there.is_none() {
        server.make(database, table, KEY);
    }
    match verb {
        "names" => return Ok(there.unwrap_or_default().into()),
        "drop" if there.is_some() => server.drop_table(database, table),
        "drop" => {}
        "get" if there.is_none() => {}
        "get" => return Ok(server.find(database, table, words[3].clone()).into()),
        "put" => server.edit(database, table, &words[3], |_| {
            let mut new = words[4].clone();
            new[KEY] = words[3].clone();
            Some(new)
        }),
        _ if there.is_none() => return Err(format!("there is no table {database}.{table}")),
        "set" => server.edit(database, table, &words[3], |old| {
            let mut new = old?;
            new[text(4)] = words[5].clone();
            Some(new)
        }),
        "add" => server.edit(database, table, &words[3], |old| {
            let mut new = old?;
            if let (Some(had), Some(more)) = (new[text(4)].as_i64(), words[5].as_i64()) {
                new[text(4)] = (had + more).into();
            }
            Some(new)
        }),
        // Only from one value to another; tells whether it did.
        "swap" => {
            let mut swapped = false;
            server.edit(database, table, &words[3], |old| {
                let mut new = old?;
                swapped = new[text(4)] == words[5];
                if swapped {
                    new[text(4)] = words[6].clone();
                }
                Some(new)
            });
            return Ok(swapped.into());
        }
        // Only where there is none yet; tells whether it did.
        "create" => {
            let mut made = false;
            server.edit(database, table, &words[3], |old| {
                made = old.is_none();
                old.or_else(|| {
                    let mut new = words[4].clone();
                    new[KEY] = words[3].clone();
                    Some(new)
                })
            });
            return Ok(made.into());
        }
        "remove" => server.edit(database, table, &words[3], |_| None),
        other => return Err(format!("no verb is {other:?}")),
    }
    Ok(Value::Null)
}

fn serve(server: &Server, stream: TcpStream) -> std::io::Result<()> {
    let mut answers = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let said = match serde_json::from_str::<Vec<Value>>(&line?) {
            Err(cause) => json!({"error": cause.to_string()}),
            Ok(words) => match obey(server, &words) {
                Ok(told) => json!({"told": told}),
                Err(error) => json!({"error": error}),
            },
        };
        writeln!(answers, "{said}")?;
    }
    Ok(())
}

fn main() {
    let ports = std::env::args().skip(1).map(|port| port.parse::<u16>());
    let ports = ports.collect::<Result<Vec<_>, _>>();
    let Ok(&[port, control]) = ports.as_deref() else {
        eprintln!("usage: rethinkdb-double PORT CONTROL");
        std::process::exit(2);
    };
    let control = TcpListener::bind(("127.0.0.1", control)).unwrap();
    let server = Arc::new(Server::at(port));
    for stream in control.incoming() {
        let (stream, server) = (stream.unwrap(), server.clone());
        std::thread::spawn(move || {
            // A client may go away at any time.
            let _ = serve(&server, stream);
        });
    }
}
