-- List the tasks that live workers of the queue know.
--
-- KEYS[1]  the queue
-- ARGV[1]  key of the tasks that live workers know
local time = redis.call('TIME')
return redis.call('ZRANGEBYSCORE', ARGV[1], '(' .. time[1] * 1000 + math.floor(time[2] / 1000), '+inf')
