-- KEYS: keys. ARGV: cost after which the rest is left to the next call, and how many elements, and
-- bytes, are too many to be digested. Gives of the first keys the kind and the etag, or '' for that.
local left, most, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local counts = { hash = 'HLEN', list = 'LLEN', set = 'SCARD', zset = 'ZCARD', stream = 'XLEN' }

local function too_large(key, kind)
  if kind == 'string' then return redis.call('STRLEN', key) > longest end
  if redis.call(counts[kind], key) > most then return true end
  -- An estimate from some of the elements. Who may not ask has it digested.
  local size = redis.pcall('MEMORY', 'USAGE', key)
  return type(size) == 'number' and size > longest
end

local answers = {}
for i, key in ipairs(KEYS) do
  local kind = kind_of(key)
  local etag, cost = '', 64
  if kind == 'string' or counts[kind] then
    if not too_large(key, kind) then etag, cost = etag_of(kind, content(key, kind)) end
  end
  answers[i] = { kind, etag }
  left = left - cost
  if left < 0 then break end
end
return answers
