-- KEYS: the key, and one that goes when it is written, if any. ARGV: condition, etag, shape ('text',
-- 'object', 'array'), kind of a new one or '', its milliseconds to live, etag of the key that goes,
-- how many items, those, then changes of fields: name, 'had' or 'new', what it had, 'set' or 'gone',
-- what it gets. Tests all before it writes.
local key, shape = KEYS[1], ARGV[3]
local kind = kind_of(key)
local form = 'document'
if shape == 'text' then form = 'text' end
local count = tonumber(ARGV[7])
local first, last = 8, 7 + count

if KEYS[2] then
  local source = kind_of(KEYS[2])
  if source == 'none' then return { 'source-missing' } end
  if ARGV[6] ~= '' then
    local has = facts(KEYS[2], source)
    if has[2] ~= ARGV[6] then return { 'source-changed', has[2] } end
  end
end

local there = kind ~= 'none' and form_of(kind) == form
if ARGV[1] == 'match' and not there then return { 'changed', '' } end
if ARGV[1] == 'absent' and there then return { 'exists' } end
if kind ~= 'none' and not there and KEYS[2] ~= key then return { 'taken', kind } end

-- Only what the writer changed is written where somebody else has changed other fields.
local merges, before = false, nil
if there and ARGV[1] == 'match' then
  local told
  told, before = facts(key, kind)
  if told[2] ~= ARGV[2] then
    if kind ~= 'hash' or shape ~= 'object' or #ARGV == last then return { 'changed', told[2] } end
    for at = last + 1, #ARGV, 5 do
      local have = redis.call('HGET', key, ARGV[at])
      local had = false
      if ARGV[at + 1] == 'had' then had = ARGV[at + 2] end
      -- Also where it is what it would get: two who count one up have counted two.
      if have ~= had then return { 'changed', told[2] } end
    end
    merges = true
  end
end

if not there then
  kind = ARGV[4]
  if kind == '' or kind == 'stream' or (kind == 'hash' or kind == 'zset') ~= (shape == 'object') then
    kind = ({ text = 'string', object = 'hash', array = 'list' })[shape]
  end
end
if kind == 'stream' or form_of(kind) ~= form then return { 'fixed', kind } end
if form == 'document' and (kind == 'hash' or kind == 'zset') ~= (shape == 'object') then
  return { 'shape', kind }
end
if kind == 'zset' then
  for at = first + 1, last, 2 do
    -- By the server's own rule, which is not Lua's. No member is called so, and XX adds none.
    local taken = redis.pcall('ZADD', key, 'XX', ARGV[at], '\0bucketfs')
    if type(taken) == 'table' and taken.err and string.find(taken.err, 'float', 1, true) then
      return { 'score', ARGV[at - 1] }
    end
  end
end

local function write(name, command, items)
  for at = 1, #items, 1000 do
    redis.call(command, name, unpack(items, at, math.min(at + 999, #items)))
  end
end

-- Under another name until it is whole, for the first write is refused where memory is full.
local fresh = key
if KEYS[2] == key then fresh = key .. '\0bucketfs' end
if kind == 'string' then
  redis.call('SET', fresh, ARGV[first], 'KEEPTTL')
elseif kind == 'list' then
  local whole, items = key .. '\0bucketfs', {}
  for at = first, last do items[#items + 1] = ARGV[at] end
  local left = redis.call('PTTL', key)
  write(whole, 'RPUSH', items)
  redis.call('RENAME', whole, fresh)
  if there and left > 0 then redis.call('PEXPIRE', fresh, left) end
elseif merges then
  local set, gone = {}, {}
  for at = last + 1, #ARGV, 5 do
    if ARGV[at + 3] == 'set' then
      set[#set + 1] = ARGV[at]
      set[#set + 1] = ARGV[at + 4]
    else
      gone[#gone + 1] = ARGV[at]
    end
  end
  write(fresh, 'HSET', set)
  write(fresh, 'HDEL', gone)
else
  -- Only the difference, so that fields that stay keep what the server knows of them.
  local pairs_of = kind ~= 'set'
  local step = pairs_of and 2 or 1
  local old, wanted, set, gone = {}, {}, {}, {}
  if there then
    local all = before or content(key, kind)
    for i = 1, #all, step do old[all[i]] = pairs_of and all[i + 1] or true end
  end
  for at = first, last, step do
    local name, value = ARGV[at], pairs_of and ARGV[at + 1] or true
    wanted[name] = true
    if old[name] ~= value then
      if kind == 'zset' then set[#set + 1] = value end
      set[#set + 1] = name
      if kind == 'hash' then set[#set + 1] = value end
    end
  end
  for name in pairs(old) do
    if not wanted[name] then gone[#gone + 1] = name end
  end
  local commands = { hash = { 'HSET', 'HDEL' }, set = { 'SADD', 'SREM' }, zset = { 'ZADD', 'ZREM' } }
  write(fresh, commands[kind][1], set)
  write(fresh, commands[kind][2], gone)
end
if KEYS[2] then
  if not there and ARGV[5] == '0' then
    local left = redis.call('PTTL', KEYS[2])
    if left > 0 then redis.call('PEXPIRE', fresh, left) end
  end
  redis.call('DEL', KEYS[2])
  if fresh ~= key then redis.call('RENAME', fresh, key) end
end
if not there and tonumber(ARGV[5]) > 0 then redis.call('PEXPIRE', key, ARGV[5]) end
local told = facts(key, kind)
-- What it is now, without what it holds.
told[5] = ''
return { 'ok', told, merges and 1 or 0 }
