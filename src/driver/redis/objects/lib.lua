-- What the scripts of the objects layout share. KEYS[1] is ROOT .. "meta"; every other key begins
-- with ROOT, so that one hash tag keeps all of them on one shard:
--   ROOT meta           hash: layout, format, id (of the store, random), version (a counter)
--   ROOT h:KEY          hash: the head of an object
--   ROOT i:DIRECTORY/   sorted set: the names in a directory; those of directories end with "/"
--   ROOT c:BODY:NUMBER  string: a chunk of a body; bodies never change
--   ROOT r              hash: how many heads share a body, where it is more than one
-- ARGV[1] is an id for a store that has none yet. A script tests all before it writes anything.
local meta = KEYS[1]
local root = string.sub(meta, 1, -5)
local shared = root .. 'r'
-- How long the chunks of a replaced body stay for those who are reading them, in ms.
local grace = 60000

local function head(key) return root .. 'h:' .. key end
local function names(directory) return root .. 'i:' .. directory end
local function chunk(body, number) return root .. 'c:' .. body .. ':' .. number end

-- A new version: an etag that no version had before, also where the database was emptied since.
local function version()
  local id = redis.call('HGET', meta, 'id')
  if not id then
    id = ARGV[1]
    redis.call('HSET', meta, 'layout', 'objects', 'format', '1', 'id', id)
  end
  return id .. '-' .. string.format('%.0f', redis.call('HINCRBY', meta, 'version', 1))
end

-- The time in microseconds.
local function now()
  local time = redis.call('TIME')
  return time[1] .. string.format('%06d', tonumber(time[2]))
end

-- What a condition says to a key: nil where it holds, else the answer. `kind` is 'none', 'absent',
-- 'match', or 'there', for which the object must be there, with that etag unless it is empty.
local function lost(key, kind, etag)
  local have = redis.call('HGET', head(key), 'e')
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

-- Takes an object away; its names stay.
local function drop(key)
  local old = redis.call('HMGET', head(key), 'b', 'r')
  if old[2] then
    redis.call('DEL', head(key))
    if old[2] ~= '' then release(old[1], old[2]) end
  end
end

-- Writes fields, as many as there are.
local function fields(key, list, from, to)
  for at = from, to, 1000 do
    redis.call('HSET', key, unpack(list, at, math.min(at + 999, to)))
  end
end
