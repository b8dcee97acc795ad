-- The streams that will be forgotten first, or are: of each the id, when that will be [ms], and the bytes that are held.
-- ARGV: how many, at the most

local found = {}
for _, id in ipairs(redis.call('ZRANGE', base .. ':ended', 0, ARGV[1] - 1)) do
  local known = redis.call('HMGET', base .. ':stream:' .. id, 'offset', 'dropped_offset')
  local size = known[1] and known[1] - known[2] or 0
  found[#found + 1] = { id, tonumber(redis.call('ZSCORE', base .. ':ended', id)), size }
end
return found
