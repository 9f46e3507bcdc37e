-- What the scripts of the data layout share. A key that holds a string is shown as 'text', one that
-- holds anything else as a 'document'.

local function kind_of(key) return redis.call('TYPE', key).ok end

local function form_of(kind)
  if kind == 'none' then return 'none' end
  if kind == 'string' then return 'text' end
  return 'document'
end

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

-- The digest of what has no order of its own: each element's SHA-1 is read as eight numbers of five
-- of its digits, and these are added up, each by itself, which is the same in every order, and costs
-- less than to sort. They stay below 2^53, so that a double has them exactly. The length of a
-- field's name stands before it, so that no two fields look alike.
local function sum_of(kind, all)
  local sha1, numbers, most = redis.sha1hex, struct.unpack, 1099511627776
  local a, b, c, d, e, f, g, h, size = 0, 0, 0, 0, 0, 0, 0, 0, 0
  local step = kind == 'hash' and 2 or 1
  for from = 1, #all, 4096 do
    for at = from, math.min(from + 4095, #all), step do
      local one = all[at]
      if step == 2 then one = #one .. ':' .. one .. all[at + 1] end
      local i, j, k, l, m, n, o, p = numbers('>I5I5I5I5I5I5I5I5', sha1(one))
      a, b, c, d, e, f, g, h = a + i, b + j, c + k, d + l, e + m, f + n, g + o, h + p
      size = size + #one
    end
    a, b, c, d = a % most, b % most, c % most, d % most
    e, f, g, h = e % most, f % most, g % most, h % most
  end
  return sha1(cmsgpack.pack(#all, a, b, c, d, e, f, g, h)), size
end

-- The etag of what is at a key, and how much it costs to tell and to send it, about as many bytes.
local function etag_of(kind, all)
  if kind == 'string' then return 's' .. redis.sha1hex(all), #all end
  local digest, size
  if kind == 'hash' or kind == 'set' then
    digest, size = sum_of(kind, all)
  else
    -- Each with its length in front. Of a stream, too: one that is made anew may have the same IDs.
    local packed = cmsgpack.pack(all)
    digest, size = redis.sha1hex(packed), #packed
  end
  return (kind == 'stream' and 'x' or string.sub(kind, 1, 1)) .. digest, size + 64 * #all
end

-- Kind, etag, milliseconds to live, size of a text, and the content of a document. Behind that the
-- content, and what it costs.
local function facts(key, kind)
  local all = content(key, kind)
  local etag, cost = etag_of(kind, all)
  local told = { kind, etag, redis.call('PTTL', key), 0, all }
  if kind == 'string' then
    told[4], told[5] = #all, ''
  end
  return told, all, cost
end
