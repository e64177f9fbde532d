# Runs the sync for Windows Task Scheduler: log in logs\sync_athletes.log, the script's exit code. Options
# are passed on. Windows PowerShell 5.1 or later.
#
#   powershell.exe -NoProfile -ExecutionPolicy Bypass -File python\scripts\run_sync_athletes.ps1

$project = Split-Path -Parent (Split-Path -Parent $PSScriptRoot)
$python = Join-Path $project '.venv\Scripts\python.exe'
$script = Join-Path $PSScriptRoot 'sync_athletes_from_app.py'
$log = Join-Path $project 'logs\sync_athletes.log'

if (-not (Test-Path -LiteralPath $python)) {
    $now = [DateTime]::UtcNow.ToString('s') + 'Z'
    Add-Content -LiteralPath $log -Encoding UTF8 "$now ERROR wrapper: there is no $python. Next: step 4 of python\docs\windows.md"
    exit 1
}

$global:LASTEXITCODE = 1  # stays, if python.exe does not start
& $python $script --log-file $log @args
exit $LASTEXITCODE
