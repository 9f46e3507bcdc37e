-- ARGV: directory, what names in it begin with, 'after' or 'all', behind which key of the directory,
-- 'fold' or 'deep', limit. Gives whether there is more, and the entries: a key alone for what is
-- folded, else a key and its head.
local fold, limit = ARGV[6] == 'fold', tonumber(ARGV[7])
local entries, more = {}, 0

-- Whether the page is full.
local function walk(directory, begin, after)
  local from = '-'
  if begin ~= '' then from = '[' .. begin end
  if after then
    local slash = string.find(after, '/', 1, true)
    if slash then
      local below = string.sub(after, 1, slash)
      if not fold and string.sub(below, 1, #begin) == begin and
          walk(directory .. below, '', string.sub(after, slash + 1)) then
        return true
      end
      from = '(' .. below
    else
      from = '(' .. after
    end
  end
  while true do
    local batch = math.min(limit - #entries + 1, 1000)
    local found = redis.call('ZRANGEBYLEX', names(directory), from, '+', 'LIMIT', 0, batch)
    for _, name in ipairs(found) do
      if string.sub(name, 1, #begin) ~= begin then return false end
      local below = string.sub(name, -1) == '/'
      if below and not fold then
        if walk(directory .. name, '', nil) then return true end
      elseif #entries == limit then
        more = 1
        return true
      elseif below then
        table.insert(entries, { directory .. name })
      else
        local key = directory .. name
        table.insert(entries, { key, redis.call('HGETALL', head(key)) })
      end
      from = '(' .. name
    end
    if #found < batch then return false end
  end
end

local after = nil
if ARGV[4] == 'after' then after = ARGV[5] end
walk(ARGV[2], ARGV[3], after)
return { 'ok', more, entries }
