-- What the scripts of the data layout share. A key that holds a string is shown as 'text', one that
-- holds anything else as a 'document'.

local function kind_of(key) return redis.call('TYPE', key).ok end

local function form_of(kind)
  if kind == 'none' then return 'none' end
  if kind == 'string' then return 'text' end
  return 'document'
end

-- With its length in front, so that no two lists of parts look alike.
local function part(text) return #text .. ':' .. text end

-- What is at a key, flat. Of a stream its entries.
local function content(key, kind)
  if kind == 'string' then return redis.call('GET', key) end
  if kind == 'hash' then return redis.call('HGETALL', key) end
  if kind == 'list' then return redis.call('LRANGE', key, 0, -1) end
  if kind == 'set' then return redis.call('SMEMBERS', key) end
  if kind == 'zset' then return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end
  if kind == 'stream' then return redis.call('XRANGE', key, '-', '+') end
  return {}
end

-- The etag of what is at a key. What has no order of its own is put into that of its digests, for
-- that of strings depends on the server's locale.
local function etag_of(kind, all, key)
  if kind == 'string' then return 's' .. redis.sha1hex(all) end
  if kind == 'stream' then
    -- Entries never change: how many there are, and the first and last, tell them.
    local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)
    local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)
    local ends = (first[1] or { '' })[1] .. ' ' .. (last[1] or { '' })[1]
    return 'x' .. redis.sha1hex(redis.call('XLEN', key) .. ' ' .. ends)
  end
  local parts = {}
  if kind == 'hash' then
    for i = 1, #all, 2 do parts[#parts + 1] = redis.sha1hex(part(all[i]) .. part(all[i + 1])) end
    table.sort(parts)
  elseif kind == 'set' then
    for i = 1, #all do parts[i] = redis.sha1hex(all[i]) end
    table.sort(parts)
  else
    for i = 1, #all do parts[i] = part(all[i]) end
  end
  return string.sub(kind, 1, 1) .. redis.sha1hex(table.concat(parts))
end

-- Kind, etag, milliseconds to live, size of a text, and the content of a document.
local function facts(key, kind)
  local all = content(key, kind)
  local told = { kind, etag_of(kind, all, key), redis.call('PTTL', key), 0, all }
  if kind == 'string' then
    told[4], told[5] = #all, ''
  end
  return told, all
end
