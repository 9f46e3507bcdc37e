//! Terms of ReQL, by the numbers that the protocol gives them (ql2.proto).

use crate::driver::json::Json;

/// An expression that the server evaluates.
#[derive(Clone, Debug)]
pub(super) struct Term(Json);

const MAKE_ARRAY: u16 = 2;
const VAR: u16 = 10;
const ERROR: u16 = 12;
const DB: u16 = 14;
const TABLE: u16 = 15;
const GET: u16 = 16;
const EQ: u16 = 17;
const NE: u16 = 18;
const LT: u16 = 19;
const GT: u16 = 21;
const NOT: u16 = 23;
const GET_FIELD: u16 = 31;
const PLUCK: u16 = 33;
const MERGE: u16 = 35;
const FILTER: u16 = 39;
const ORDER_BY: u16 = 41;
const TYPE_OF: u16 = 52;
const DELETE: u16 = 54;
const REPLACE: u16 = 55;
const INSERT: u16 = 56;
const DB_LIST: u16 = 59;
const TABLE_CREATE: u16 = 60;
const TABLE_LIST: u16 = 62;
const BRANCH: u16 = 65;
const OR: u16 = 66;
const AND: u16 = 67;
const FUNC: u16 = 69;
const LIMIT: u16 = 71;
const DESC: u16 = 74;
const GET_ALL: u16 = 78;
const INFO: u16 = 79;
const CONTAINS: u16 = 93;
const KEYS: u16 = 94;
const MATCH: u16 = 97;
const LITERAL: u16 = 137;
const CHANGES: u16 = 152;
const MINVAL: u16 = 180;
const MAXVAL: u16 = 181;
const BETWEEN: u16 = 182;
const FLOOR: u16 = 183;

fn number(number: impl ToString) -> Json {
    Json::Number(number.to_string())
}

fn string(text: &str) -> Json {
    Json::String(text.to_owned())
}

fn call(code: u16, args: Vec<Term>) -> Term {
    let args = args.into_iter().map(|Term(json)| json).collect();
    Term(Json::Array(vec![number(code), Json::Array(args)]))
}

/// A value, as it is.
pub(super) fn datum(value: &Json) -> Term {
    Term(match value {
        Json::Array(items) => {
            return call(MAKE_ARRAY, items.iter().map(datum).collect());
        }
        Json::Object(fields) => {
            let fields = fields.iter();
            Json::Object(fields.map(|(name, v)| (name.clone(), datum(v).0)).collect())
        }
        other => other.clone(),
    })
}

pub(super) fn text(text: &str) -> Term {
    Term(string(text))
}

pub(super) fn null() -> Term {
    Term(Json::Null)
}

/// An object whose members are evaluated.
pub(super) fn object(fields: Vec<(String, Term)>) -> Term {
    let fields = fields.into_iter().map(|(name, Term(json))| (name, json));
    Term(Json::Object(fields.collect()))
}

/// What the function of one argument is called with.
pub(super) fn row() -> Term {
    call(VAR, vec![Term(number(1))])
}

pub(super) fn branch(args: Vec<Term>) -> Term {
    call(BRANCH, args)
}

pub(super) fn all(conditions: Vec<Term>) -> Term {
    call(AND, conditions)
}

pub(super) fn any(conditions: Vec<Term>) -> Term {
    call(OR, conditions)
}

/// Fails in these words.
pub(super) fn error(words: &str) -> Term {
    call(ERROR, vec![text(words)])
}

/// A value that replaces, where objects are merged.
pub(super) fn literal(value: Term) -> Term {
    call(LITERAL, vec![value])
}

/// No value: a merge takes the field away.
pub(super) fn nothing() -> Term {
    call(LITERAL, Vec::new())
}

/// Before and behind every key.
pub(super) fn least() -> Term {
    call(MINVAL, Vec::new())
}

pub(super) fn greatest() -> Term {
    call(MAXVAL, Vec::new())
}

pub(super) fn databases() -> Term {
    call(DB_LIST, Vec::new())
}

pub(super) fn database(name: &str) -> Term {
    call(DB, vec![text(name)])
}

/// Whether a bound is meant itself.
fn bound(closed: bool) -> Json {
    string(if closed { "closed" } else { "open" })
}

impl Term {
    /// With arguments by name.
    fn with(self, named: Vec<(&str, Json)>) -> Term {
        let named = named.into_iter().map(|(name, v)| (name.to_owned(), v));
        let Json::Array(mut parts) = self.0 else {
            return self;
        };
        parts.push(Json::Object(named.collect()));
        Term(Json::Array(parts))
    }

    fn of(self, code: u16, mut args: Vec<Term>) -> Term {
        args.insert(0, self);
        call(code, args)
    }

    fn function(self) -> Term {
        let argument = call(MAKE_ARRAY, vec![Term(number(1))]);
        call(FUNC, vec![argument, self])
    }

    pub(super) fn table(self, name: &str) -> Term {
        self.of(TABLE, vec![text(name)])
    }

    pub(super) fn tables(self) -> Term {
        self.of(TABLE_LIST, Vec::new())
    }

    pub(super) fn create(self, name: &str) -> Term {
        self.of(TABLE_CREATE, vec![text(name)])
    }

    pub(super) fn info(self) -> Term {
        self.of(INFO, Vec::new())
    }

    pub(super) fn get(self, id: &Json) -> Term {
        self.of(GET, vec![datum(id)])
    }

    pub(super) fn get_all<'a>(self, ids: impl Iterator<Item = &'a Json>) -> Term {
        self.of(GET_ALL, ids.map(datum).collect())
    }

    /// Keys of a range; the left end is meant, and the right one where it is `closed`.
    pub(super) fn between(self, left: Term, right: Term, closed: bool) -> Term {
        self.of(BETWEEN, vec![left, right]).with(vec![
            ("left_bound", bound(true)),
            ("right_bound", bound(closed)),
        ])
    }

    pub(super) fn ordered(self, index: &str, is_descending: bool) -> Term {
        let index = match is_descending {
            true => text(index).of(DESC, Vec::new()),
            false => text(index),
        };
        self.of(ORDER_BY, Vec::new()).with(vec![("index", index.0)])
    }

    pub(super) fn limit(self, most: usize) -> Term {
        self.of(LIMIT, vec![Term(number(most))])
    }

    pub(super) fn filter(self, holds: Term) -> Term {
        self.of(FILTER, vec![holds.function()])
    }

    /// The field of an object, or of each of a sequence.
    pub(super) fn field(self, name: &str) -> Term {
        self.of(GET_FIELD, vec![text(name)])
    }

    pub(super) fn kind(self) -> Term {
        self.of(TYPE_OF, Vec::new())
    }

    pub(super) fn has(self, name: &str) -> Term {
        self.of(KEYS, Vec::new()).of(CONTAINS, vec![text(name)])
    }

    pub(super) fn is(self, other: Term) -> Term {
        self.of(EQ, vec![other])
    }

    pub(super) fn differs(self, other: Term) -> Term {
        self.of(NE, vec![other])
    }

    pub(super) fn negated(self) -> Term {
        self.of(NOT, Vec::new())
    }

    /// Whether a number is beyond these.
    pub(super) fn beyond(self, end: i64) -> Term {
        let low = self.clone().of(LT, vec![Term(number(-end))]);
        any(vec![low, self.of(GT, vec![Term(number(end))])])
    }

    pub(super) fn floor(self) -> Term {
        self.of(FLOOR, Vec::new())
    }

    pub(super) fn matches(self, pattern: &str) -> Term {
        self.of(MATCH, vec![text(pattern)])
    }

    pub(super) fn merge(self, other: Term) -> Term {
        self.of(MERGE, vec![other])
    }

    /// Writes a new document, which replaces another where that is said.
    pub(super) fn insert(self, document: &Json, replaces: bool) -> Term {
        let conflict = string(if replaces { "replace" } else { "error" });
        self.of(INSERT, vec![datum(document)])
            .with(vec![("conflict", conflict), ("durability", string("hard"))])
    }

    /// Makes something else of a document, in one step, and tells what that is.
    pub(super) fn replace(self, by: Term) -> Term {
        self.of(REPLACE, vec![by.function()]).with(vec![
            ("durability", string("hard")),
            ("return_changes", string("always")),
        ])
    }

    pub(super) fn delete(self) -> Term {
        self.of(DELETE, Vec::new())
            .with(vec![("durability", string("hard"))])
    }

    /// The feed of changes: of each only what `fields` are before and after.
    pub(super) fn changes(self, fields: &str) -> Term {
        let only = |side: &str| {
            let fields = call(MAKE_ARRAY, vec![text(fields)]);
            object(vec![(side.to_owned(), fields)])
        };
        self.of(CHANGES, Vec::new())
            .with(vec![("squash", Json::Bool(false))])
            .of(PLUCK, vec![only("new_val"), only("old_val")])
    }

    /// The query that asks for it.
    pub(super) fn query(&self) -> String {
        format!("[1,{},{{}}]", self.0.compact())
    }
}
