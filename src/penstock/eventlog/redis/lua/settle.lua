-- Ends those of some streams whose producer is gone; of each its fields, or none if it is not known. ARGV: ids

local known = {}
for at, id in ipairs(ARGV) do
  settle(id)
  known[at] = redis.call('HGETALL', base .. ':stream:' .. id)
end
return known
