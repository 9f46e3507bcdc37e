//! The terms of ReQL that the driver sends. Each query is evaluated under one lock, so that a write
//! is atomic as it is in the server.

use super::values::{TYPE, encoded, kind, merge, normal};
use super::{Cut, State, Table};
use serde_json::{Map, Value, json};
use std::sync::{Mutex, mpsc};

/// The one pattern that is matched here.
const ODD: &str = "^=|/|^-?[0-9]+$";

#[derive(Debug)]
pub enum Failure {
    Said {
        kind: u8,
        code: i64,
        said: String,
    },
    /// The connection is to break.
    Cut,
}

pub enum Outcome {
    One(Value),
    Rows(Vec<Value>),
    Feed(mpsc::Receiver<Value>, Option<Value>),
}

type Result<T> = std::result::Result<T, Failure>;

fn fail<T>(code: i64, said: impl Into<String>) -> Result<T> {
    let said = said.into();
    Err(Failure::Said {
        kind: 18,
        code,
        said,
    })
}

fn unknown<T>(what: impl std::fmt::Display) -> Result<T> {
    let said = format!("the double knows no {what}");
    Err(Failure::Said {
        kind: 17,
        code: 0,
        said,
    })
}

/// What a term comes to.
enum Got {
    Datum(Value),
    Database(String),
    Table(String, String),
    /// A document by its key.
    Row(String, String, Value),
    /// Documents of a range, in the order of their keys.
    Range(Vec<Value>, String),
    Rows(Vec<Value>),
    Bound(Vec<u8>),
    Descending(String),
    Feed(mpsc::Receiver<Value>, Option<Value>),
}

pub fn table<'a>(state: &'a mut State, database: &str, name: &str) -> Result<&'a mut Table> {
    let Some(tables) = state.databases.get_mut(database) else {
        return fail(4_100_000, format!("Database `{database}` does not exist."));
    };
    match tables.get_mut(name) {
        Some(table) => Ok(table),
        None => fail(
            4_100_000,
            format!("Table `{database}.{name}` does not exist."),
        ),
    }
}

struct Query<'a> {
    state: &'a mut State,
    may_write: bool,
    /// What the function is called with.
    row: Vec<Value>,
    cut: bool,
}

/// Evaluates a query.
pub fn evaluate(term: &Value, may_write: bool, state: &Mutex<State>) -> Result<Outcome> {
    let mut state = state.lock().unwrap();
    let mut query = Query {
        state: &mut state,
        may_write,
        row: Vec::new(),
        cut: false,
    };
    let got = query.eval(term)?;
    if query.cut {
        return Err(Failure::Cut);
    }
    Ok(match got {
        Got::Datum(value) => Outcome::One(value),
        Got::Row(database, name, id) => {
            let found = table(&mut state, &database, &name)?.rows.get(&encoded(&id));
            Outcome::One(found.cloned().unwrap_or(Value::Null))
        }
        Got::Range(rows, _) | Got::Rows(rows) => Outcome::Rows(rows),
        Got::Feed(feed, pluck) => Outcome::Feed(feed, pluck),
        Got::Table(..) => return unknown("reading of a whole table"),
        Got::Database(_) | Got::Bound(_) | Got::Descending(_) => return unknown("such a result"),
    })
}

impl Query<'_> {
    fn datum(&mut self, term: &Value) -> Result<Value> {
        match self.eval(term)? {
            Got::Datum(value) => Ok(value),
            _ => unknown(format!("datum in {term}")),
        }
    }

    fn text(&mut self, term: &Value) -> Result<String> {
        match self.datum(term)? {
            Value::String(text) => Ok(text),
            other => unknown(format!("name {other}")),
        }
    }

    fn holds(&mut self, term: &Value) -> Result<bool> {
        let value = self.datum(term)?;
        Ok(value != Value::Null && value != Value::Bool(false))
    }

    /// Calls a function of one argument.
    fn call(&mut self, function: &Value, with: Value) -> Result<Value> {
        if function[0] != 69 || function[1][0] != json!([2, [1]]) {
            return unknown(format!("function {function}"));
        }
        self.row.push(with);
        let result = self.datum(&function[1][1]);
        self.row.pop();
        result
    }

    fn eval(&mut self, term: &Value) -> Result<Got> {
        let parts = match term {
            Value::Array(parts) => parts,
            Value::Object(fields) => {
                let mut object = Map::new();
                for (name, value) in fields {
                    object.insert(name.clone(), self.datum(value)?);
                }
                return Ok(Got::Datum(Value::Object(object)));
            }
            other => return Ok(Got::Datum(normal(other.clone()))),
        };
        let none = Vec::new();
        let args = parts.get(1).and_then(Value::as_array).unwrap_or(&none);
        let named = parts.get(2).cloned().unwrap_or_else(|| json!({}));
        let code = parts[0].as_u64().unwrap_or(0);
        let is_plain = named.as_object().is_some_and(Map::is_empty);
        if !is_plain && !matches!(code, 41 | 54 | 55 | 56 | 152 | 182) {
            return unknown(format!("argument by name in {term}"));
        }
        let value = match code {
            2 => {
                let items = args.iter().map(|item| self.datum(item));
                items.collect::<Result<Vec<_>>>()?.into()
            }
            10 => match self.row.last() {
                Some(row) if args[0] == 1 => row.clone(),
                _ => return unknown("such a variable"),
            },
            12 => return fail(5_000_000, self.text(&args[0])?),
            14 => return Ok(Got::Database(self.text(&args[0])?)),
            15 => {
                let Got::Database(database) = self.eval(&args[0])? else {
                    return unknown("table of no database");
                };
                let name = self.text(&args[1])?;
                table(self.state, &database, &name)?;
                return Ok(Got::Table(database, name));
            }
            17 | 18 => {
                let (a, b) = (self.datum(&args[0])?, self.datum(&args[1])?);
                ((normal(a) == normal(b)) == (code == 17)).into()
            }
            19 | 21 => {
                let (a, b) = (self.datum(&args[0])?, self.datum(&args[1])?);
                let (Some(a), Some(b)) = (a.as_f64(), b.as_f64()) else {
                    return unknown("order of these");
                };
                (if code == 19 { a < b } else { a > b }).into()
            }
            23 => (!self.holds(&args[0])?).into(),
            31 => return self.field(args),
            35 => merge(self.datum(&args[0])?, &self.datum(&args[1])?),
            52 => kind(&self.datum(&args[0])?).into(),
            59 => self.state.databases.keys().cloned().collect(),
            60 | 62 => return self.tables(code, args),
            65 => return self.branch(args),
            66 | 67 => {
                let mut outcome = code == 67;
                for condition in args {
                    outcome = self.holds(condition)?;
                    if outcome == (code == 66) {
                        break;
                    }
                }
                outcome.into()
            }
            74 => return Ok(Got::Descending(self.text(&args[0])?)),
            93 => {
                let (all, one) = (self.datum(&args[0])?, self.datum(&args[1])?);
                all.as_array().is_some_and(|all| all.contains(&one)).into()
            }
            94 => match self.datum(&args[0])? {
                Value::Object(fields) if !fields.contains_key(TYPE) => {
                    fields.keys().cloned().collect()
                }
                _ => return fail(3_000_000, "Cannot call `keys` on objects of this type."),
            },
            97 => {
                let (text, pattern) = (self.text(&args[0])?, self.text(&args[1])?);
                if pattern != ODD {
                    return unknown(format!("pattern {pattern}"));
                }
                let digits = text.strip_prefix('-').unwrap_or(&text);
                let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
                match text.starts_with('=') || text.contains('/') || is_number {
                    true => json!({"str": text}),
                    false => Value::Null,
                }
            }
            137 => match args.first() {
                Some(value) => json!({TYPE: "LITERAL", "value": self.datum(value)?}),
                None => json!({TYPE: "LITERAL"}),
            },
            180 => return Ok(Got::Bound(Vec::new())),
            181 => return Ok(Got::Bound(vec![0xff])),
            183 => match self.datum(&args[0])?.as_f64() {
                Some(n) => normal(n.floor().into()),
                None => return fail(3_000_000, "Expected type NUMBER."),
            },
            16 | 33 | 39 | 41 | 54..=56 | 71 | 78 | 79 | 152 | 182 => {
                return self.selection(code, args, &named);
            }
            _ => return unknown(format!("term {term}")),
        };
        Ok(Got::Datum(value))
    }

    fn branch(&mut self, args: &[Value]) -> Result<Got> {
        for pair in args.chunks(2) {
            match pair {
                [otherwise] => return self.eval(otherwise),
                [condition, then] if self.holds(condition)? => return self.eval(then),
                _ => {}
            }
        }
        unknown("branch without an end")
    }

    fn field(&mut self, args: &[Value]) -> Result<Got> {
        let from = self.eval(&args[0])?;
        let name = self.text(&args[1])?;
        let rows = match from {
            Got::Datum(Value::Object(fields)) if !fields.contains_key(TYPE) => {
                return match fields.get(&name) {
                    Some(value) => Ok(Got::Datum(value.clone())),
                    None => fail(3_100_000, format!("No attribute `{name}` in object.")),
                };
            }
            Got::Range(rows, _) | Got::Rows(rows) => rows,
            _ => {
                return fail(
                    3_000_000,
                    "Cannot perform get_field on a non-object non-sequence.",
                );
            }
        };
        let fields = rows.iter().filter_map(|row| row.get(&name).cloned());
        Ok(Got::Rows(fields.collect()))
    }

    fn tables(&mut self, code: u64, args: &[Value]) -> Result<Got> {
        let Got::Database(database) = self.eval(&args[0])? else {
            return unknown("tables of no database");
        };
        if code == 60 && !self.may_write {
            return denied();
        }
        let name = args.get(1).map(|name| self.text(name)).transpose()?;
        let Some(tables) = self.state.databases.get_mut(&database) else {
            return fail(4_100_000, format!("Database `{database}` does not exist."));
        };
        let Some(name) = name else {
            return Ok(Got::Datum(tables.keys().cloned().collect()));
        };
        if tables.contains_key(&name) {
            return fail(
                4_100_000,
                format!("Table `{database}.{name}` already exists."),
            );
        }
        let fresh = Table {
            key: "id".to_owned(),
            ..Table::default()
        };
        tables.insert(name, fresh);
        Ok(Got::Datum(json!({"tables_created": 1})))
    }

    /// Terms over tables and what is chosen of them.
    fn selection(&mut self, code: u64, args: &[Value], named: &Value) -> Result<Got> {
        let from = self.eval(&args[0])?;
        Ok(match (code, from) {
            (16, Got::Table(database, name)) => Got::Row(database, name, self.datum(&args[1])?),
            (33, Got::Feed(feed, None)) => {
                let fields = args[1..].iter().map(|fields| self.datum(fields));
                let fields = fields.collect::<Result<Vec<_>>>()?;
                Got::Feed(feed, Some(fields.into()))
            }
            (39, Got::Range(rows, _)) => {
                let mut kept = Vec::new();
                for row in rows {
                    let holds = self.call(&args[1], row.clone())?;
                    if holds != Value::Null && holds != Value::Bool(false) {
                        kept.push(row);
                    }
                }
                // No slice of an index any more, which alone can be ordered by that.
                Got::Rows(kept)
            }
            (41, Got::Range(mut rows, key)) => {
                let index = match self.eval(&named["index"])? {
                    Got::Datum(Value::String(index)) => index,
                    Got::Descending(index) => {
                        rows.reverse();
                        index
                    }
                    _ => return unknown("order without an index"),
                };
                if index != key {
                    return unknown(format!("index {index}"));
                }
                Got::Range(rows, key)
            }
            (71, Got::Range(mut rows, key)) => {
                let most = self.datum(&args[1])?.as_u64().unwrap_or(0);
                rows.truncate(most as usize);
                Got::Range(rows, key)
            }
            (78, Got::Table(database, name)) => {
                let ids = args[1..].iter().map(|id| self.datum(id));
                let ids = ids.collect::<Result<Vec<_>>>()?;
                let rows = &table(self.state, &database, &name)?.rows;
                let found = ids.iter().rev().filter_map(|id| rows.get(&encoded(id)));
                Got::Rows(found.cloned().collect())
            }
            (79, Got::Table(database, name)) => {
                let key = &table(self.state, &database, &name)?.key;
                Got::Datum(json!({"name": name, "type": "TABLE", "primary_key": key}))
            }
            (152, Got::Table(database, name)) if *named == json!({"squash": false}) => {
                let (feed, changes) = mpsc::channel();
                table(self.state, &database, &name)?.feeds.push(feed);
                Got::Feed(changes, None)
            }
            (182, Got::Table(database, name)) => self.between(&database, &name, args, named)?,
            (54, Got::Row(database, name, id)) if *named == json!({"durability": "hard"}) => {
                self.write(&database, &name, id, false, |_, _| Ok(Value::Null))?
            }
            (55, Got::Row(database, name, id)) if *named == writing(None) => {
                self.write(&database, &name, id, true, |query, old| {
                    query.call(&args[1], old)
                })?
            }
            (56, Got::Table(database, name)) => {
                let new = self.datum(&args[1])?;
                let replaces = match () {
                    () if *named == writing(Some("replace")) => true,
                    () if *named == writing(Some("error")) => false,
                    () => return unknown(format!("insert with {named}")),
                };
                let key = table(self.state, &database, &name)?.key.clone();
                let id = new[&key].clone();
                let taken = format!("Duplicate primary key `{key}`:\n{{}}");
                self.write(&database, &name, id, false, |_, old| match old {
                    Value::Null => Ok(new),
                    _ if replaces => Ok(new),
                    _ => fail(5_000_000, taken),
                })?
            }
            (code, _) => return unknown(format!("term {code} of that")),
        })
    }

    fn between(
        &mut self,
        database: &str,
        name: &str,
        args: &[Value],
        named: &Value,
    ) -> Result<Got> {
        let mut ends = Vec::new();
        for bound in &args[1..3] {
            ends.push(match self.eval(bound)? {
                Got::Bound(bound) => bound,
                Got::Datum(id) if too_long(&id) => {
                    return fail(3_000_000, "Primary key too long (max 127 characters)");
                }
                Got::Datum(id) => encoded(&id),
                _ => return unknown("such a bound"),
            });
        }
        let is_closed = match (named["left_bound"].as_str(), named["right_bound"].as_str()) {
            (Some("closed"), Some("closed")) => true,
            (Some("closed"), Some("open")) => false,
            _ => return unknown(format!("bounds {named}")),
        };
        let table = table(self.state, database, name)?;
        let within = table.rows.iter().filter(|(id, _)| {
            **id >= ends[0] && (**id < ends[1] || (is_closed && **id == ends[1]))
        });
        let rows = within.map(|(_, row)| row.clone()).collect();
        Ok(Got::Range(rows, table.key.clone()))
    }

    /// Makes something else of a row.
    fn write(
        &mut self,
        database: &str,
        name: &str,
        id: Value,
        is_told: bool,
        by: impl FnOnce(&mut Self, Value) -> Result<Value>,
    ) -> Result<Got> {
        if !self.may_write {
            return denied();
        }
        let cut = self.state.cut.take();
        if cut == Some(Cut::Before) {
            return Err(Failure::Cut);
        }
        self.cut = cut == Some(Cut::After);
        let place = encoded(&id);
        let old = table(self.state, database, name)?.rows.get(&place).cloned();
        let old = old.unwrap_or(Value::Null);
        let new = match by(self, old.clone()) {
            Ok(new) if too_long(&new[&table(self.state, database, name)?.key]) => {
                return Ok(refusal(
                    "Primary key too long (max 127 characters): \"...\"",
                ));
            }
            Ok(new) => normal(new),
            Err(Failure::Said {
                code: 5_000_000 | 3_000_000..4_000_000,
                said,
                ..
            }) => return Ok(refusal(&said)),
            Err(failure) => return Err(failure),
        };
        let table = table(self.state, database, name)?;
        if new != Value::Null && encoded(&new[&table.key]) != place {
            return Ok(refusal("Primary key `id` cannot be changed"));
        }
        table.set(place, Some(new.clone()).filter(|new| *new != Value::Null));
        let what = match (&old, &new) {
            (Value::Null, Value::Null) => "skipped",
            (Value::Null, _) => "inserted",
            (_, Value::Null) => "deleted",
            (old, new) if old == new => "unchanged",
            _ => "replaced",
        };
        let mut told = json!({"errors": 0, what: 1});
        if is_told {
            told["changes"] = json!([{"new_val": new, "old_val": old}]);
        }
        Ok(Got::Datum(told))
    }
}

fn too_long(id: &Value) -> bool {
    id.as_str().is_some_and(|text| text.len() > 127)
}

/// What writes that are to be acknowledged, and told, say by name.
fn writing(conflict: Option<&str>) -> Value {
    match conflict {
        Some(conflict) => json!({"durability": "hard", "conflict": conflict}),
        None => json!({"durability": "hard", "return_changes": "always"}),
    }
}

fn refusal(said: &str) -> Got {
    Got::Datum(json!({"errors": 1, "first_error": said, "changes": []}))
}

fn denied() -> Result<Got> {
    fail(
        6_000_000,
        "User `reader` does not have the required `write` permission",
    )
}
