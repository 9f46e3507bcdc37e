-- What the scripts of the objects layout share. KEYS[1] is ROOT .. "meta"; every other key begins
-- with ROOT, so that one hash tag keeps all of them on one shard:
--   ROOT meta           hash: layout, format, id (of the store, random; older mounts have it in their
--                       etags), version (a counter)
--   ROOT h:KEY          string: the head of an object. Its first line is ETAG TIME BODY RUNS: when in
--                       microseconds, the name of the body, and which chunks it has. Behind it are the
--                       other facts, packed: s (size), c (commits) and attributes
--   ROOT i:DIRECTORY/   sorted set: the names in a directory; those of directories end with "/"
--   ROOT c:BODY:NUMBER  string: a chunk of a body; bodies never change
--   ROOT r              hash: how many heads share a body, where it is more than one
-- ARGV[1] is a random word, another for each call. A script tests all before it writes anything.
local meta = KEYS[1]
local root = string.sub(meta, 1, -5)
local shared = root .. 'r'
-- How long the chunks of a replaced body stay for those who are reading them, in ms.
local grace = 60000

local function head(key) return root .. 'h:' .. key end
local function names(directory) return root .. 'i:' .. directory end
local function chunk(body, number) return root .. 'c:' .. body .. ':' .. number end

-- A new version: an etag that no version had before, also where the database was emptied, or set
-- back to what it was.
local function version()
  if redis.call('HEXISTS', meta, 'id') == 0 then
    redis.call('HSET', meta, 'layout', 'objects', 'format', '1', 'id', ARGV[1])
  end
  return string.format('%.0f', redis.call('HINCRBY', meta, 'version', 1)) .. '-' .. ARGV[1]
end

-- The time in microseconds.
local function now()
  local time = redis.call('TIME')
  return time[1] .. string.format('%06d', tonumber(time[2]))
end

-- The head of an object, taken apart; nil where there is none.
local function read(key)
  local text = redis.call('GET', head(key))
  if not text then return nil end
  local e, t, b, r, f = string.match(text, '^(%S+) (%S+) (%S+) (%S*)\n(.*)$')
  return { e = e, t = t, b = b, r = r, f = f, text = text }
end

-- Writes a head, and gives it.
local function save(key, e, t, b, r, f)
  local text = e .. ' ' .. t .. ' ' .. b .. ' ' .. r .. '\n' .. f
  redis.call('SET', head(key), text)
  return text
end

-- What a condition says to a key with that head: nil where it holds, else the answer. `kind` is
-- 'none', 'absent', 'match', or 'there', for which the object must be there, with that etag unless
-- it is empty.
local function lost(key, old, kind, etag)
  local have = old and old.e
  if kind == 'absent' and have then return { 'exists', key } end
  if kind == 'match' and have ~= etag then return { 'changed', key, have or '' } end
  if kind == 'there' and not have then return { 'missing', key } end
  if kind == 'there' and etag ~= '' and have ~= etag then return { 'changed', key, have } end
  return nil
end

-- A key's directory and its name in there, which is empty for a key that ends with "/".
local function split(key)
  local directory, name = string.match(key, '^(.*/)([^/]*)$')
  return directory or '', name or key
end

-- Enters a key, and the directories that it implies.
local function enter(key)
  local directory, name = split(key)
  while redis.call('ZADD', names(directory), 0, name) == 1 and directory ~= '' do
    local parent, last = split(string.sub(directory, 1, -2))
    directory, name = parent, last .. '/'
  end
end

-- Strikes a key out, and the directories that it was the last in.
local function strike(key)
  local directory, name = split(key)
  redis.call('ZREM', names(directory), name)
  while directory ~= '' and redis.call('EXISTS', names(directory)) == 0 do
    local parent, last = split(string.sub(directory, 1, -2))
    redis.call('ZREM', names(parent), last .. '/')
    directory = parent
  end
end

-- Calls a function for each chunk of a body, whose runs are written FIRST,COUNT,SIZE;...
local function each(body, runs, call)
  for first, count in string.gmatch(runs, '(%d+),(%d+),%d+') do
    for number = tonumber(first), tonumber(first) + tonumber(count) - 1 do
      call(chunk(body, string.format('%.0f', number)))
    end
  end
end

-- One head more shares a body.
local function share(body)
  if redis.call('HSETNX', shared, body, 2) == 0 then redis.call('HINCRBY', shared, body, 1) end
end

-- A head less does.
local function release(body, runs)
  local count = tonumber(redis.call('HGET', shared, body) or 1)
  if count > 2 then
    redis.call('HINCRBY', shared, body, -1)
  elseif count == 2 then
    redis.call('HDEL', shared, body)
  elseif string.match(runs, '^%d+,1,%d+;$') then
    -- A body of one chunk was given with its head.
    each(body, runs, function(name) redis.call('UNLINK', name) end)
  else
    each(body, runs, function(name) redis.call('PEXPIRE', name, grace) end)
  end
end

-- Lets go of what a head that is replaced or removed had.
local function drop(old)
  if old and old.r ~= '' then release(old.b, old.r) end
end

-- Facts as a table, from names and values, each with its length in front.
local function unpacked(text)
  local facts, at, name = {}, 1, nil
  while at <= #text do
    local length, from = string.match(text, '^(%d+):()', at)
    at = from + tonumber(length)
    local part = string.sub(text, from, at - 1)
    if name then
      facts[name] = part
      name = nil
    else
      name = part
    end
  end
  return facts
end

local function packed(facts)
  local parts = {}
  for name, value in pairs(facts) do
    parts[#parts + 1] = #name .. ':' .. name .. #value .. ':' .. value
  end
  return table.concat(parts)
end
