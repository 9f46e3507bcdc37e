-- KEYS: keys. ARGV: bytes after which the rest is left to the next call; terms as JSON, each the names
-- on its way, p, and its value, v. Gives the facts of the first keys, with what they hold, and 'none'
-- for those that surely do not match: whoever asks compares the others itself.
local terms, left = cjson.decode(ARGV[2]), tonumber(ARGV[1])
-- Larger ones take too long here.
local most = 1048576
local cannot = '^%s*[^%s{%[]'
if #terms == 0 then cannot = '^%s*[^%s{%["%-%dtfn]' end

local function step(at, name)
  if type(at) ~= 'table' then return nil end
  if at[name] ~= nil then return at[name] end
  local position = tonumber(name)
  if position then return at[position + 1] end
end

local function may_hold(document, term)
  local at = document
  for _, name in ipairs(term.p) do at = step(at, name) end
  if type(term.v) == 'table' then return type(at) == 'table' end
  return at == term.v
end

local function text_may_match(key)
  if string.find(redis.call('GETRANGE', key, 0, 63), cannot) then return false end
  local size = redis.call('STRLEN', key)
  if #terms == 0 or size > most then return true end
  left = left - size
  local is_json, document = pcall(cjson.decode, redis.call('GET', key))
  if not is_json then return true end
  for _, term in ipairs(terms) do
    if not may_hold(document, term) then return false end
  end
  return true
end

-- What is no text is shown as an object, and so are names that begin with the sign of one.
local function hash_may_match(key)
  for _, term in ipairs(terms) do
    local name, value = term.p[1], term.v
    if string.sub(name, 1, 8) ~= '$binary:' then
      local has = redis.call('HGET', key, name)
      if not has then return false end
      if #term.p == 1 and type(value) ~= 'table' and has ~= value then return false end
    end
  end
  return true
end

local answers = {}
for i, key in ipairs(KEYS) do
  local kind = kind_of(key)
  local may = kind ~= 'none'
  if kind == 'string' then may = text_may_match(key) end
  if kind == 'hash' then may = hash_may_match(key) end
  left = left - 64
  if may then
    local told, all, cost = facts(key, kind)
    told[5] = all
    answers[i] = told
    left = left - cost
  else
    answers[i] = { 'none' }
  end
  if left < 0 then break end
end
return answers
